"""Markdown of answers on the chat page: its nodes, hostile text, and updates while it grows."""

import json
from typing import Any

import pytest
from helpers.browser import Chat
from helpers.chat_ui import check_accessible
from helpers.page_server import answer_with
from playwright.sync_api import expect

MARKDOWN = """### Two cats

1. *one* is **black**
   - with `paws`
2. the other

| cat | age |
|---|--:|
| Tom | 7 |

> a quote

```python
print("cats")
```

[site](https://example.org/) ![cat](http://127.0.0.1:9/cat.png)
"""
HOSTILE = """<script>document.title = "x"</script> <img src=x onerror=alert(1)> <b onclick="alert(1)">b</b>

[a](javascript:alert(1)) [b](data:text/html,x) ![c](javascript:alert(1)) <javascript:alert(1)> [d](vbscript:x "onclick=alert(1)")

```"><img src=x>
</code></pre><script>alert(1)</script>
```

|<script>|
|---|
|<iframe src=/>|
"""
VIEW = """(pieces) => import(new URL("page/markdown_view.js", document.baseURI)).then(({MarkdownView}) => {
    const element = document.getElementById("turns").appendChild(document.createElement("div"));
    element.className = "text markdown";
    const view = new MarkdownView(element, false, () => {});
    const whole = element.cloneNode();
    for (const piece of pieces) {
        view.add(piece);
        view.finish();
    }
    const other = new MarkdownView(whole, false, () => {});
    other.add(pieces.join(""));
    other.finish();
    return [element.outerHTML, whole.outerHTML];
})"""


def test_markdown_becomes_nodes_and_code_can_be_copied(scripted: Chat) -> None:
    answer_with(scripted.page, MARKDOWN)
    scripted.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    scripted.ask("Hello")
    scripted.wait_for_answers(1)
    text = scripted.page.locator(".answer .text")
    expect(text.get_by_role("heading", level=3)).to_have_text("Two cats")
    expect(text.locator("ol > li > ul > li code")).to_have_text("paws")
    expect(text.get_by_role("cell")).to_have_text(["Tom", "7"])
    expect(text.locator("blockquote")).to_have_text("a quote")
    expect(text.locator("img")).to_have_count(0)
    links = [(link.text_content(), *(link.get_attribute(name) for name in ("href", "target", "rel"))) for link in text.locator("a").all()]
    opened = ("_blank", "noopener noreferrer")
    assert links == [("site", "https://example.org/", *opened), ("cat", "http://127.0.0.1:9/cat.png", *opened)]
    text.get_by_role("button", name="Copy").click()
    expect(scripted.page.locator("#status")).to_have_text("Copied.")
    assert scripted.page.evaluate("() => navigator.clipboard.readText()") == 'print("cats")'
    check_accessible(scripted.page)


def test_hostile_markdown_stays_text(scripted: Chat) -> None:
    answer_with(scripted.page, HOSTILE)
    scripted.ask("Hello")
    scripted.wait_for_answers(1)
    text = scripted.page.locator(".answer .text")
    expect(text.locator("script, img, iframe, b, a, [onclick], [onerror]")).to_have_count(0)
    for part in ("<script>document.title", "onerror=alert(1)", "[a](javascript:alert(1))", "<javascript:alert(1)>", "<iframe src=/>"):
        expect(text).to_contain_text(part)
    assert scripted.page.title() == "LLaVA"


@pytest.mark.parametrize("size", [1, 7, 40])
def test_growing_text_shows_the_same_as_the_whole_text(scripted: Chat, size: int) -> None:
    text = (MARKDOWN + "\n- a\n\n1. b\n\n2. c\n\npara **bold\n- x\n--\n---\n# h\n#### deep\n") * 2
    growing, whole = scripted.page.evaluate(VIEW, [text[start : start + size] for start in range(0, len(text), size)])
    assert growing == whole


def test_growing_text_keeps_the_nodes_and_the_selection(scripted: Chat) -> None:
    selected: Any = scripted.page.evaluate(
        """async () => {
            const {MarkdownView} = await import(new URL("page/markdown_view.js", document.baseURI));
            const element = document.getElementById("turns").appendChild(document.createElement("div"));
            const view = new MarkdownView(element, false, () => {});
            const show = (text) => { view.add(text); view.finish(); };
            show("Some *text* and\\n\\n- an item");
            getSelection().selectAllChildren(element);
            const nodes = [...element.querySelectorAll("*")];
            for (let i = 0; i < 50; i++) show(" more");
            return [getSelection().toString().replace(/\\s+/g, " "), nodes.every((node) => node.isConnected)];
        }"""
    )
    assert selected == ["Some text and an item" + " more" * 50, True]


def test_a_million_characters_leave_the_page_responsive(scripted: Chat) -> None:
    answer_with(scripted.page, "".join(f"Line {number} with **bold** and `code`.\n\n" for number in range(28_000)))
    scripted.ask("Hello")
    scripted.wait_for_answers(1)
    assert scripted.page.evaluate("() => document.querySelectorAll('.answer .text > p').length") == 28_000


def test_json_mode_asks_for_json_and_shows_it_as_code(scripted: Chat) -> None:
    answer = json.dumps({"a_b_c": "*not emphasis*"})
    bodies = answer_with(scripted.page, answer)
    scripted.set()
    scripted.page.get_by_label("Answers are JSON").check()
    scripted.ask("Hello")
    scripted.wait_for_answers(1)
    assert bodies[0]["response_format"] == {"type": "json_object"}
    expect(scripted.page.locator(".answer .text code")).to_have_text(answer)
    check_accessible(scripted.page)
