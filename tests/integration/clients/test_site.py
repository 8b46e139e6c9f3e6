"""The documentation site in a browser: accessible in both palettes and on a phone, and without requests to other servers."""

from collections.abc import Iterator

import pytest
from helpers.browser import PageMonitor
from helpers.chat_ui import check_accessible
from helpers.server import ROOT
from helpers.site import build, check_colors, served
from playwright.sync_api import Browser, BrowserContext, Page, expect

PAGES = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
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
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One context for all pages, which reads the theme's files once."""
    made = browser.new_context()
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    opened = context.new_page()
    yield opened
    opened.close()


@pytest.mark.parametrize("name", [*PAGES, *GENERATED, "404.html"])
def test_page_is_accessible_and_asks_no_other_server(page: Page, site: str, name: str) -> None:
    monitor = PageMonitor(page, site)
    page.goto(f"{site}/{name}")
    check_accessible(page)
    page.emulate_media(color_scheme="dark")
    page.evaluate("() => localStorage.clear()")  # the theme keeps the first palette there
    page.reload()
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    check_colors(page)
    page.evaluate("() => localStorage.clear()")
    assert monitor.problems == []


@pytest.mark.parametrize("name", ["openai.html", "performance.html"])
def test_page_is_accessible_on_a_phone(browser: Browser, site: str, name: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(f"{site}/{name}")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    check_accessible(page)
    context.close()


def test_search_finds_a_page_without_another_server(page: Page, site: str) -> None:
    monitor = PageMonitor(page, site)
    page.goto(f"{site}/index.html")
    page.get_by_role("textbox", name="Search").fill("previous_response_id")
    found = page.locator(".md-search-result__link").first
    expect(found).to_be_visible()
    check_accessible(page)
    found.click()
    expect(page).to_have_url(lambda url: url.startswith(f"{site}/responses.html"))
    assert monitor.problems == []
