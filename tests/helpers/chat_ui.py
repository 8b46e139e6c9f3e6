"""Images, files and checks for tests of the chat page."""

from collections.abc import Callable
from typing import Any

from helpers.browser import Chat
from helpers.server import ROOT
from playwright.sync_api import Page, Request

from llava_gateway.demo.images import Grid, draw, encode

ONE: Grid = ("red", "blue", "green", "white")
TWO: Grid = ("yellow", "black", "orange", "purple")
AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
OpenChat = Callable[..., Chat]
"""Opens the chat page at a URL. The keywords are those of a browser context."""


def png(grid: Grid) -> bytes:
    """Return a PNG of a grid."""
    return encode(draw(grid))


def sent_bodies(page: Page) -> list[Any]:
    """Return a list that receives the bodies of the page's chat requests from now on."""
    bodies: list[Any] = []

    def on_request(request: Request) -> None:
        if request.url.endswith("/chat/completions"):
            bodies.append(request.post_data_json)

    page.on("request", on_request)
    return bodies


def check_accessible(page: Page, *rules: str) -> None:
    """Check a page against these rules of axe-core, or against all."""
    page.evaluate(f"() => {{ {AXE.read_text()} }}")
    found = page.evaluate("(rules) => axe.run(rules.length ? {runOnly: rules} : {})", rules)
    assert len(found["passes"]) > (0 if rules else 15)
    assert [(rule["id"], node["html"], node["failureSummary"]) for rule in found["violations"] for node in rule["nodes"]] == []
