"""Real servers that many tests share: the demo model on the real engine, behind a real socket."""

from collections.abc import Iterator

import httpx
import pytest
from helpers.commands import run
from helpers.contract import ContractTransport
from helpers.server import KEY, Polling, Server, serve
from openai import OpenAI


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-body-mb", "8", "--allow-networks", "127.0.0.0/8", "--image-timeout", "3", "--max-num-seqs", "64", "--keep-alive", "0.5")
    with serve(tmp_path_factory.mktemp("server"), *flags) as started:
        yield started


@pytest.fixture(scope="session")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Polling]:
    """A server that keeps votes, with keys and two names of its model: for votes, then for the page, whose last test ends it."""
    folder = tmp_path_factory.mktemp("polling")
    made = {}
    for name, *limits in (["alice"], ["bob", "--models", "another"], ["carol", "--requests-per-minute", "1"], ["dave"]):
        made[name] = run("keys", "new", name, "--file", folder / "keys.json", *limits).stdout.strip()
    flags = (
        *("--feedback-dir", "votes", "--feedback-max-mb", "1", "--keys-file", "keys.json", "--api-keys", KEY),
        *("--model-alias", "other", "--allow-networks", "127.0.0.0/8", "--shutdown-timeout", "0"),
    )
    with serve(folder, *flags) as server:
        yield Polling(server, folder / "votes", made)


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[OpenAI]:
    """OpenAI's own SDK. Every answer it gets is checked against OpenAI's schema."""
    with httpx.Client(transport=ContractTransport(), timeout=120) as http:
        yield OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120, http_client=http)


@pytest.fixture(scope="session")
def live_client(server: Server) -> OpenAI:
    """The SDK reading streams as they come."""
    return OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """Every answer is checked against OpenAI's schema."""
    with httpx.Client(base_url=server.url, transport=ContractTransport(), timeout=120) as client:
        yield client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, then those of votes, then those that need the server, and what ends it last."""

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        fixtures = getattr(item, "fixturenames", ())
        return item.get_closest_marker("last") is not None, "server" in fixtures, "polling" in fixtures

    items.sort(key=place)
