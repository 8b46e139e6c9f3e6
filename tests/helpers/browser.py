"""A real Chromium, driven by Playwright, that shows the chat page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL_HINT = "no browser: `apt-get install chromium` installs one for the tests of the chat page"

expect.set_options(timeout=60_000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the system's Chromium. Without one, skip the test, or fail it where CI is set."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(INSTALL_HINT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


class PageMonitor:
    """A list of the page's faults: logged errors, and requests to any server other than its own."""

    def __init__(self, page: Page, url: str) -> None:
        self._url = url
        self.problems: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        is_refusal = message.location["url"].startswith(f"{self._url}/v1/")  # Chromium logs each response with an error status
        if message.type in ("error", "warning") and not is_refusal:
            self.problems.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._url}/", "data:")):
            self.problems.append(request.url)


class Chat:
    """The chat page, as a user operates it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.monitor = PageMonitor(page, url)
        self.question = page.get_by_label("Question", exact=True)
        self.answers = page.locator(".answer .text")
        self.costs = page.locator(".cost")
        self.errors = page.locator(".answer .error")
        page.set_default_timeout(60_000)
        page.goto(f"{url}/")

    def wait_for_models(self) -> None:
        self.page.locator("#model option").first.wait_for(state="attached")

    def choose(self, *images: bytes) -> None:
        before = self.page.locator("#images li").count()
        files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": image} for number, image in enumerate(images)]
        self.page.locator("#files").set_input_files(files)  # type: ignore[arg-type]
        expect(self.page.locator("#images li")).to_have_count(before + len(images))

    def set(self, **fields: str) -> None:
        """Fill fields of the settings, and leave the settings open."""
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

    def slow_down(self) -> None:
        """Let the events of answers reach the page one by one, each some frames after the one before it, as from a large model."""
        self.page.evaluate(
            """() => {
                const fetched = fetch, decoder = new TextDecoder(), encoder = new TextEncoder();
                const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
                async function transform(bytes, controller) {
                    for (const event of decoder.decode(bytes, {stream: true}).split(/(?<=\\n\\n)/)) {
                        controller.enqueue(encoder.encode(event));
                        for (let frames = 0; frames < 3; frames += 1) await frame();
                    }
                }
                window.fetch = async (...request) => {
                    const response = await fetched(...request);
                    return new Response(response.body?.pipeThrough(new TransformStream({transform})), response);
                };
            }"""
        )

    def at_first_text(self, script: str) -> None:
        """Run a script in the page at the moment when an answer's first text appears."""
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
