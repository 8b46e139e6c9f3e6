"""Real servers that many tests share: the demo model on the real engine, behind a real socket."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import ContractTransport
from openai import OpenAI
from origin import Origin
from voting import run

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # else importing it asks a server on the internet for prices
ROOT = Path(__file__).parent.parent
START_TIMEOUT = 240
KEY = "sesame-ü"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-body-mb", "8", "--allow-networks", "127.0.0.0/8", "--image-timeout", "3", "--max-num-seqs", "64", "--keep-alive", "0.5")
    with serve(tmp_path_factory.mktemp("server"), *flags) as started:
        yield started


@dataclass(frozen=True)
class Polling:
    server: Server
    folder: Path
    keys: dict[str, str]

    def vote(self, given: dict[str, Any], key: str = "alice") -> httpx.Response:
        return httpx.post(f"{self.server.url}/feedback", json=given, headers={"key": self.keys[key]}, timeout=60)

    def records(self) -> list[dict[str, Any]]:
        log = self.folder / "feedback.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


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


@contextmanager
def serve(folder: Path, *flags: str, model: str = "llava-demo", wait: bool = True, group: bool = False) -> Iterator[Server]:
    """A server of the demo model, or of another, ready unless nobody waits for that. `group`: in a process group of its own."""
    port = free_port()
    log = folder / "log"
    command = [sys.executable, "-m", "llava_gateway", "serve", model, "--port", str(port), *flags]
    with log.open("wb") as output:
        environment = os.environ | {"LLAVA_PORT": "1"}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment, process_group=0 if group else None
        )
    started = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            wait_until_ready(started)
        yield started
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server ended:\n{server.log.read_text()}"
        try:
            if httpx.get(f"{server.url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server is not ready after {START_TIMEOUT} s:\n{server.log.read_text()}")


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


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """A server of pictures, good and bad."""
    with Origin() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, then those of votes, then those that need the server, and what ends it last."""

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        fixtures = getattr(item, "fixturenames", ())
        return item.get_closest_marker("last") is not None, "server" in fixtures, "polling" in fixtures

    items.sort(key=place)
