"""The documentation site in a browser: accessible in both palettes and on a phone, and without requests to other servers."""

import re
from collections.abc import Iterator
from typing import Literal

import pytest
from helpers.browser import PageMonitor
from helpers.chat_ui import check_accessible
from helpers.server import ROOT
from helpers.site import build, served
from helpers.waiting import wait_for
from playwright.sync_api import Browser, BrowserContext, expect

PAGES = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
COLORS = ("color-contrast", "link-in-text-block")
"""The rules of axe-core that depend on the palette."""
GENERATED = [f"reference/{name}.html" for name in ("apis", "commands", "errors", "metrics", "python")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    built = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    assert built == {*PAGES, *GENERATED, "404.html"}
    with served(folder) as url:
        yield url


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    """One context for each palette. It reads the theme's files once, for all pages."""
    made: dict[str, BrowserContext] = {scheme: browser.new_context(color_scheme=scheme) for scheme in SCHEMES}
    yield made
    for context in made.values():
        context.close()


@pytest.mark.parametrize("name", [*PAGES, *GENERATED, "404.html"])
def test_page_is_accessible_and_asks_no_other_server(contexts: dict[str, BrowserContext], site: str, name: str) -> None:
    for scheme, context in contexts.items():
        page = context.new_page()
        monitor = PageMonitor(page, site)
        page.goto(f"{site}/{name}")
        assert page.evaluate("() => document.body.dataset.mdColorScheme") == ("slate" if scheme == "dark" else "default")
        check_accessible(page, *(COLORS if scheme == "dark" else ()))
        assert monitor.problems == []
        page.close()


@pytest.mark.parametrize("name", ["openai.html", "performance.html"])
def test_page_is_accessible_on_a_phone(browser: Browser, site: str, name: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(f"{site}/{name}")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    check_accessible(page)
    context.close()


def test_search_finds_a_page_without_another_server(browser: Browser, site: str) -> None:
    page = browser.new_page()
    monitor = PageMonitor(page, site)
    page.goto(f"{site}/index.html")
    box, found = page.get_by_role("textbox", name="Search"), page.locator(".md-search-result__link")
    box.fill("previous_response_id")

    def press_key() -> int:
        """The theme searches at each key. It misses those that come before its index has loaded."""
        box.press("End")
        return found.count()

    wait_for(press_key)
    check_accessible(page)
    found.first.click()
    expect(page).to_have_url(re.compile(rf"{site}/\w+\.html\?h=previous_response_id"))
    assert monitor.problems == []
    page.close()
