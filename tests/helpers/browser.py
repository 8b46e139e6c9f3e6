"""A real Chromium, driven by Playwright, on the chat page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW = "no browser: `apt-get install chromium` has one that the tests of the chat page use"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's. Without one the test is skipped, or fails where CI is set."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


class Watch:
    """What a page must not do: log an error, or ask any other server than its own."""

    def __init__(self, page: Page, url: str) -> None:
        self._url = url
        self.wrong: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        refused = message.location["url"].startswith(f"{self._url}/v1/")  # Chromium logs each status that is an error
        if message.type in ("error", "warning") and not refused:
            self.wrong.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._url}/", "data:")):
            self.wrong.append(request.url)


class Chat:
    """The chat page, as people use it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.watch = Watch(page, url)
        self.question = page.get_by_label("Question", exact=True)
        self.answers = page.locator(".answer .text")
        self.costs = page.locator(".cost")
        self.errors = page.locator(".answer .error")
        page.set_default_timeout(15_000)
        page.goto(f"{url}/")

    def wait_for_models(self) -> None:
        self.page.locator("#model option").first.wait_for(state="attached")

    def choose(self, *pictures: bytes) -> None:
        before = self.page.locator("#pictures li").count()
        files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": picture} for number, picture in enumerate(pictures)]
        self.page.locator("#files").set_input_files(files)  # type: ignore[arg-type]
        expect(self.page.locator("#pictures li")).to_have_count(before + len(pictures))

    def set(self, **fields: str) -> None:
        """Fields of the settings, which stay open."""
        if self.page.locator("#settings").is_hidden():
            self.page.get_by_role("button", name="Settings").click()
        for name, value in fields.items():
            self.page.locator(f"#{name}").fill(value)

    def ask(self, text: str) -> None:
        self.question.fill(text)
        self.question.press("Enter")

    def wait_for_answers(self, count: int) -> list[str]:
        expect(self.page.locator(".answer[aria-busy=false]")).to_have_count(count, timeout=60_000)
        expect(self.page.locator("#send")).to_be_visible()
        return self.answers.all_text_contents()

    def at_first_text(self, script: str) -> None:
        """Runs the script in the page at the moment when text of an answer first appears."""
        self.page.evaluate(
            """(script) => new MutationObserver((_, observer) => {
                if (![...document.querySelectorAll(".answer .text")].at(-1)?.textContent) return;
                observer.disconnect();
                scripts[script]();
            }).observe(document.getElementById("turns"), {subtree: true, childList: true, characterData: true})
            const scripts = {
                stop: () => dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"})),
                up: () => { document.getElementById("scroller").scrollTop = 0; },
            };""",
            script,
        )
