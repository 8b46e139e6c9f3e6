"""The texts of the chat page: each language has each text, and the page has no other texts."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from helpers.programs import NODE

from llava_gateway.api.chat_ui.router import FILES

HTML = FILES["index.html"].decode()
SCRIPTS = {name: content.decode() for name, content in FILES.items() if name.endswith(".js")}


def texts(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Return the texts of each language."""
    (tmp_path / "texts.mjs").write_bytes(FILES["texts.js"])
    (tmp_path / "print.mjs").write_text('import { TEXTS } from "./texts.mjs"; console.log(JSON.stringify(TEXTS));')
    ended = subprocess.run([NODE, "print.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    found: dict[str, dict[str, str]] = json.loads(ended.stdout)
    return found


def test_no_text_is_missing_in_a_language(tmp_path: Path) -> None:
    english, *others = texts(tmp_path).values()
    assert others
    for other in others:
        assert list(other) == list(english)
        for key, text in other.items():
            assert text
            assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", english[key])), key


def test_used_texts_are_the_existing_texts(tmp_path: Path) -> None:
    code = "\n".join(content for name, content in SCRIPTS.items() if name != "texts.js")
    used = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', HTML)) | set(re.findall(r'"data-(?:text|label)": "(\w+)"', code))
    used |= {key for call in re.findall(r"\bt\(([^;]*)", code) for key in re.findall(r'"(\w+)"', call)}
    used |= set(re.findall(r'ending = (?:[^";]*\? ending : )?"(\w+)"', code)) | {"language"}
    english = set(texts(tmp_path)["en"])
    assert english <= used
    assert set(re.findall(r'data-(?:text|label|hint)="(\w+)"', HTML)) <= english


def test_page_has_no_text_outside_of_the_file_of_texts() -> None:
    class Reader(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            shown = [value for name, value in attrs if name in ("aria-label", "title", "placeholder", "alt") and value]
            self.found.extend(shown)

        def handle_data(self, data: str) -> None:
            if data.strip():
                self.found.append(data.strip())

    Reader().feed(HTML)
    assert Reader.found == ["LLaVA", "LLaVA", "https://"]  # the name of the page, and the beginning of an address
