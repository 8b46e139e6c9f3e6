"""Screenshots of the chat page for docs/pictures: `make pictures`."""

import tempfile
from pathlib import Path
from typing import Any

from helpers.browser import Chat, chromium
from helpers.server import ROOT, serve
from playwright.sync_api import Browser

FIRST, SECOND = ((ROOT / "examples" / "pictures" / name).read_bytes() for name in ("first.png", "second.jpg"))
WIDE = {"width": 1120, "height": 760}
PHONE = {"width": 390, "height": 780}


def shoot(browser: Browser, url: str, name: str, *, compare: bool = False, **context: Any) -> None:
    """Take a screenshot of the page with an answer. `compare`: with two models side by side. `context`: of the browser."""
    page = browser.new_context(**context).new_page()
    chat = Chat(page, url)
    chat.wait_for_models()
    if compare:
        page.get_by_role("button", name="Compare").click()
    chat.set(temperature="0")
    if not compare:
        page.get_by_role("button", name="Settings").click()
    chat.choose(FIRST, SECOND)
    chat.question.fill("Describe these images.")
    page.get_by_role("button", name="Send").click()
    chat.wait_for_answers(2 if compare else 1)
    page.screenshot(path=ROOT / "docs" / "pictures" / f"{name}.png", animations="disabled")
    page.context.close()


def main() -> None:
    flags = ("--model-alias", "other", "--feedback-dir", "votes")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, serve(Path(folder), *flags) as server:
        shoot(browser, server.url, "page", viewport=WIDE)
        shoot(browser, server.url, "page-compare-dark", compare=True, viewport=WIDE, color_scheme="dark")
        shoot(browser, server.url, "page-phone", viewport=PHONE, is_mobile=True, has_touch=True)


if __name__ == "__main__":
    main()
