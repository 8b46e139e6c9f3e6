"""A line that is not a request gets an error in the output of `llava-gateway batch`, and the other lines are answered."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.batch import line
from helpers.faulty_server import answer, faulty_server

from llava_gateway.cli.batch import main

UNREACHABLE = "http://127.0.0.1:9"
GOOD = json.dumps(line("a", "Hello"))
INVALID = {
    "{": ("invalid_json_line", None, "not JSON"),
    "\udcff": ("invalid_json_line", None, "not JSON"),
    "[]": ("invalid_request_line", None, "line 1: "),
    '{"url": "/v1/completions", "body": {}}': ("invalid_request_line", None, "line 1: custom_id"),
    '{"custom_id": 5, "url": "/v1/completions", "body": {}}': ("invalid_request_line", None, "line 1: custom_id"),
    GOOD.replace("chat/completions", "embeddings"): ("invalid_request_line", "a", "line 1: url"),
    GOOD.replace("POST", "GET"): ("invalid_request_line", "a", "line 1: method"),
    '{"custom_id": "a", "url": "/v1/completions", "body": 1}': ("invalid_request_line", "a", "line 1: body"),
    json.dumps(line("a", "Hello", stream=True)): ("invalid_request_line", "a", "line 1: body.stream"),
    GOOD.replace('"Hello"', "[" * 500 + "]" * 500): (
        "invalid_request_line",
        "a",
        "line 1: body",
    ),
}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    return path


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


@pytest.mark.parametrize("text", INVALID)
def test_invalid_line_is_an_error_line_even_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    code, custom_id, message = INVALID[text]
    out = tmp_path / "out.jsonl"
    assert run(write(tmp_path / "in.jsonl", text), out, "--base-url", UNREACHABLE) == 1
    (entry,) = entries(out)
    assert (entry["custom_id"], entry["response"], entry["error"]["code"]) == (custom_id, None, code)
    assert message in entry["error"]["message"]
    assert entry["error"]["message"] in capsys.readouterr().out


def test_invalid_lines_do_not_keep_the_others_from_their_answers(tmp_path: Path) -> None:
    """The same command then has nothing left to do, and a corrected line is sent."""
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(lines, "{", GOOD, "", "{", GOOD.replace("Hello", "Bye"), json.dumps(line("b", "Hello")))
    with faulty_server(answer(200, {"choices": []})) as url:
        command = (lines, out, "--base-url", url)
        assert run(*command) == 1
        found = entries(out)
        assert [(each["custom_id"], each["error"] and each["error"]["message"].partition(":")[0]) for each in found[:3]] == [
            (None, "line 1"),
            (None, "line 4"),
            ("a", "line 5"),
        ]
        assert {each["custom_id"] for each in found[3:]} == {"a", "b"}
        assert all(each["error"] is None for each in found[3:])
        assert len({each["id"] for each in found}) == 4, "the two requests are equal, so that their ids are, too"
        before = out.read_bytes()
        assert run(*command) == 1
        assert out.read_bytes() == before
        write(lines, GOOD, json.dumps(line("c", "Hello")), json.dumps(line("b", "Hello")))
        assert run(*command, "--retry-failed") == 0
    assert sorted(each["custom_id"] for each in entries(out)) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file_has_an_empty_result(tmp_path: Path, content: str) -> None:
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(content)
    assert run(lines, out, "--base-url", UNREACHABLE) == 0
    assert out.read_bytes() == b""


def test_image_whose_name_is_not_utf_8_is_an_error_line(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).touch()
    out = tmp_path / "out.jsonl"
    assert run(out, "--images", tmp_path / "*.png", "--prompt", "What is this?", "--base-url", UNREACHABLE) == 1
    (entry,) = entries(out)
    assert "not UTF-8" in entry["error"]["message"]
