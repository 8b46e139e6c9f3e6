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


def picture(grid: Grid) -> bytes:
    return encode(draw(grid))


def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of the chats that the page asks for from now on."""
    bodies: list[dict[str, Any]] = []

    def on_request(request: Request) -> None:
        if request.url.endswith("/chat/completions"):
            bodies.append(request.post_data_json)

    page.on("request", on_request)
    return bodies


def check_accessible(page: Page) -> None:
    """Against all rules of axe-core."""
    page.evaluate(f"() => {{ {AXE.read_text()} }}")
    found = page.evaluate("() => axe.run()")
    assert len(found["passes"]) > 15
    assert [(rule["id"], node["html"], node["failureSummary"]) for rule in found["violations"] for node in rule["nodes"]] == []
