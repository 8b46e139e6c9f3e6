"""Real servers that many tests share: the demo model on the real engine, behind a real socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.browser import chromium
from helpers.commands import run
from helpers.contract import ContractTransport
from helpers.server import KEY, FeedbackServer, Server, serve
from openai import OpenAI
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share."""
    flags = ("--max-body-mb", "8", "--allow-networks", "127.0.0.0/8", "--image-timeout", "3", "--max-num-seqs", "64", "--keep-alive", "0.5")
    with serve(tmp_path_factory.mktemp("server"), *flags) as started:
        yield started


@pytest.fixture(scope="session")
def feedback_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeedbackServer]:
    """A server that keeps votes, with keys and two names of its model. Its tokens take vLLM's own path."""
    folder = tmp_path_factory.mktemp("feedback_server")
    made = {}
    for name, *limits in (["alice"], ["bob", "--models", "another"], ["carol", "--requests-per-minute", "1"], ["dave"]):
        made[name] = run("keys", "new", name, "--file", folder / "keys.json", *limits).stdout.strip()
    flags = (
        *("--feedback-dir", "votes", "--feedback-max-mb", "1", "--keys-file", "keys.json", "--api-keys", KEY),
        *("--model-alias", "other", "--allow-networks", "127.0.0.0/8", "--shutdown-timeout", "0", "--fast-paths", "off"),
    )
    with serve(folder, *flags) as server:
        yield FeedbackServer(server, folder / "votes", made)


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[OpenAI]:
    """OpenAI's SDK. Each response is checked against OpenAI's schema."""
    with httpx.Client(transport=ContractTransport(), timeout=120) as http:
        any_http: Any = http  # the SDK accepts this client, although it declares one of httpx2
        yield OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120, http_client=any_http)


@pytest.fixture(scope="session")
def live_client(server: Server) -> OpenAI:
    """OpenAI's SDK, which reads streams as they arrive, without a check of the schema."""
    return OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """An HTTP client. Each response is checked against OpenAI's schema."""
    with httpx.Client(base_url=server.url, transport=ContractTransport(), timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def plain_http(server: Server) -> Iterator[httpx.Client]:
    """An HTTP client for the APIs that are not OpenAI's."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of a file."""
    with chromium() as running:
        yield running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and start the longest files first: the two test processes then end at about the same time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
        if "browser" in _fixtures(item):
            item.add_marker(pytest.mark.browser)
    items.sort(key=lambda item: "faults" not in item.path.parts)


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))
