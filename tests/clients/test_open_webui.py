"""Open WebUI's own page, in a real browser."""

from collections.abc import Iterator

import httpx
import pytest
from helpers.browser import chromium
from helpers.clients import ENVIRONMENTS, environment, recipe, running
from helpers.server import ROOT, Server, free_port
from helpers.waiting import wait_for
from playwright.sync_api import expect

IMAGE_TOKENS = 'llava_tokens_total{kind="image"}'
SETTINGS = {
    "USE_SLIM_DOCKER": "true",  # as in its slim image, which has no torch
    "WEBUI_AUTH": "False",
    "OFFLINE_MODE": "true",
    "RAG_EMBEDDING_ENGINE": "openai",
    "WEBUI_SECRET_KEY": "a secret key that only the tests know",
}


@pytest.fixture(scope="module", params=["Open WebUI", "Open WebUI with Ollama's API"])
def open_webui(server: Server, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an Open WebUI that uses the server in one of two ways."""
    folder, port = tmp_path_factory.mktemp("open_webui"), free_port()
    command = recipe(request.param, server)
    command[-1] = command[-1].replace("--port 8080", f"--host 127.0.0.1 --port {port}")
    variables = environment(ENVIRONMENTS / "open-webui" / "bin", folder, DATA_DIR=str(folder), **SETTINGS)
    with running(command, folder, variables) as (process, log):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or _answers(url), seconds=240, why=log.read_text)
        assert process.poll() is None, log.read_text()
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10).is_success
    except httpx.TransportError:
        return False


def test_picture_gets_an_answer_on_the_page(server: Server, open_webui: str) -> None:
    """The page's default is to send its built-in tools with every message."""
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(open_webui)
        page.get_by_text("llava-demo").first.wait_for()
        if (welcome := page.get_by_role("button", name="Okay, Let's Go!")).count():
            welcome.click()
        with page.expect_response(lambda response: "/api/v1/files/" in response.url and response.request.method == "POST"):
            page.locator("input[type=file]").first.set_input_files(ROOT / "examples" / "pictures" / "first.png")
        images = server.metric(IMAGE_TOKENS)
        page.locator("#chat-input").click()
        page.keyboard.type("Describe this image.")
        page.keyboard.press("Enter")
        expect(page.locator("#response-content-container")).to_contain_text("the top left is", ignore_case=True)
        wait_for(lambda: server.metric(IMAGE_TOKENS) >= images + 576)
