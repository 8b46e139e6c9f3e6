"""The chat page's parser of Markdown: the nodes of a text, the names that a text can bring into the page, and its time."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.programs import NODE

from llava_gateway.api.chat_ui.router import FILES

MILLION = 1_000_000
ATTRIBUTES = {"href", "target", "rel", "class", "type", "data-text", "data-label", "tabindex", "role", "start"}
TAGS = {
    *("a", "blockquote", "button", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "span", "strong"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
HOSTILE = (
    "<script>alert(1)</script>",
    "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](\x01javascript:x) [x](data:text/html,x) [x](vbscript:x) [x](//evil) [x](file:///a)",
    '[x](https://a.b/"onclick=alert(1)) [x](https://a.b "t" onclick="x") <https://a.b/onerror=x>',
    "![x](javascript:alert(1)) ![x](data:image/svg+xml,x) <javascript:alert(1)> <data:x>",
    '```"onclick="alert(1)\ncode\n```\n\n```<img src=x>\n```',
    "|<b>|x|\n|---|:-:|\n|<img src=x onerror=alert(1)>|\n",
    "__proto__ constructor [constructor](__proto__)",
)
REPEATED = (
    *("*a", "*a ", "_a_", "~~a", "***a**b*", "`", "``a`", "a `` b ``` c ", "*`[_", "[", "](", "[a](", "![", "](a](a)", "](()](", "[a](b)("),
    *("<", "http://a", "h", "\\", "> ", "- ", "  - ", "1. ", "-", " -", "x- ", "# ", "|", "a|b\n-|-\n", "```\n", "~~~ ", " ", "\n", " \n"),
)


def parse(tmp_path: Path, *texts: str) -> list[list[Any]]:
    """Return the nodes of each text, with the milliseconds that the parser took."""
    for name in ("markdown_blocks.js", "markdown_inline.js"):
        (tmp_path / name).write_bytes(FILES[name])
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "parse.js").write_text(
        """import { readFileSync } from "node:fs";
        import { blocks } from "./markdown_blocks.js";
        for (const text of JSON.parse(readFileSync("texts.json"))) {
            const started = performance.now();
            const nodes = blocks(text).map(({ node }) => node);
            const time = performance.now() - started;
            console.log(JSON.stringify([text.length > 10000 ? depth(nodes) : nodes, time]));
        }
        function depth(nodes) {
            return Math.max(0, ...nodes.slice(0, 1000).map((node) => 1 + (node.children ? depth(node.children) : 0)));
        }"""
    )
    ended = subprocess.run([NODE, "parse.js"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def html(node: Any) -> str:
    if isinstance(node, str):
        return node
    attributes = "".join(f" {name}" if name in ("href", "start") else "" for name in node["attributes"])
    return f"<{node['tag']}{attributes}>{''.join(map(html, node['children']))}</{node['tag']}>"


READ = {
    "a **b *c*** __d__ ~~e~~ ***f***": "<p>a <strong>b <em>c</em></strong> <strong>d</strong> <del>e</del> <strong><em>f</em></strong></p>",
    "snake_case_name 2 * 3 * 4 \\*a\\* **open": "<p>snake_case_name 2 * 3 * 4 *a* **open</p>",
    "`a ``b` ``c`d`` `open": "<p><code>a ``b</code> <code>c`d</code> `open</p>",
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "## a ##\n#b\n---\nc": "<h4>a</h4><p>#b</p><hr></hr><p>c</p>",
    "- a\n  - b\n    - c\n- d": "<ul><li><p>a</p><ul><li><p>b</p><ul><li><p>c</p></li></ul></li></ul></li><li><p>d</p></li></ul>",
    "1. a\n  - b\n    - c\n\n2. d\n   e": (
        "<ol><li><p>a</p><ul><li><p>b</p><ul><li><p>c</p></li></ul></li></ul></li><li><p>d\ne</p></li></ol>"
    ),
    "3) a\n4) b\n1. c": "<ol start><li><p>a</p></li><li><p>b</p></li></ol><ol><li><p>c</p></li></ol>",
    "Born in\n1986. A year\n* x": "<p>Born in\n1986. A year</p><ul><li><p>x</p></li></ul>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "|a|b\\|c|\n|-|-:|\n|1||\n\nd": (
        "<div><table><thead><tr><th>a</th><th>b|c</th></tr></thead><tbody><tr><td>1</td><td></td></tr></tbody></table></div><p>d</p>"
    ),
    "see https://a.b/c_(d). [*x*](https://a.b)": "<p>see <a href>https://a.b/c_(d)</a>. <a href><em>x</em></a></p>",
    "[https://a.b](https://a.b) ![cat](https://a.b/c.png)": "<p><a href>https://a.b</a> <a href>cat</a></p>",
    "<mailto:a@b.c> <b>": "<p><a href>mailto:a@b.c</a> <b></p>",
}
"""Texts and the HTML of their nodes."""


def test_markdown_is_read_as_models_write_it(tmp_path: Path) -> None:
    parsed = parse(tmp_path, *READ)
    assert {text: "".join(map(html, nodes)) for text, (nodes, _) in zip(READ, parsed, strict=True)} == READ


def test_text_brings_no_tag_attribute_or_address_of_its_own(tmp_path: Path) -> None:
    def check(node: Any) -> None:
        if isinstance(node, str):
            return
        assert node["tag"] in TAGS
        assert set(node["attributes"]) <= ATTRIBUTES
        if node["tag"] == "a":
            assert node["attributes"]["href"].startswith("https://a.b/")
            assert (node["attributes"]["target"], node["attributes"]["rel"]) == ("_blank", "noopener noreferrer")
        for child in node["children"]:
            check(child)

    for nodes, _ in parse(tmp_path, *HOSTILE):
        assert nodes
        for node in nodes:
            check(node)


@pytest.mark.slow
def test_a_million_hostile_characters_take_linear_time_and_nest_no_deeper_than_a_bound(tmp_path: Path) -> None:
    for text, (depth, time) in zip(REPEATED, parse(tmp_path, *(text * (MILLION // len(text)) for text in REPEATED)), strict=True):
        assert depth <= 50, text
        assert time < 20_000, text  # milliseconds; a quadratic step would take minutes
