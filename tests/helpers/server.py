"""Real servers: the demo model on the real engine, behind a real socket."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from helpers.contract import ContractTransport
from helpers.waiting import json_lines

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 240
"""The longest time that a server may take to start, in seconds."""
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
"""A client with a new connection for each request. A new client takes 20 ms of CPU, in which it reads the certificates of authorities."""
KEY = "sesame-ü"
"""An API key of the feedback server."""


@dataclass(frozen=True)
class Server:
    """A running `llava-gateway serve`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def client(self, key: str) -> httpx.Client:
        """Return an HTTP client with an API key, whose responses are checked against OpenAI's schema."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, transport=ContractTransport(), timeout=120, headers=headers)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def metric(self, *prefixes: str) -> float:
        """Return the sum of all samples whose line begins with one of the prefixes, for a server without keys."""
        lines = HTTP.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(prefixes))

    def engine_tokens(self) -> float:
        """Return the number of tokens that the engine has generated."""
        return self.metric("vllm:generation_tokens_total")

    def in_flight(self) -> float:
        """Return the number of requests in the gateway plus the number of requests in the engine."""
        return self.metric("llava_requests_inside ", "vllm:num_requests_running")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class FeedbackServer:
    """A server that keeps votes in a folder, and its API keys by name."""

    server: Server
    folder: Path
    keys: dict[str, str]

    def vote(self, given: dict[str, Any], key: str = "alice") -> httpx.Response:
        return HTTP.post(f"{self.server.url}/feedback", json=given, headers={"key": self.keys[key]}, timeout=60)

    def records(self) -> list[dict[str, Any]]:
        """Return all votes that the server has kept."""
        return json_lines(self.folder / "feedback.jsonl")


@contextmanager
def serve(
    folder: Path, *flags: str, model: str = "llava-demo", wait: bool = True, group: bool = False, python: str = sys.executable
) -> Iterator[Server]:
    """Run a server, and stop it at the end. `flags`: of `llava-gateway serve`.

    `wait`: until the server is ready. `group`: the server gets its own process group. `python`: of the environment with the gateway.
    """
    port = free_port()
    log = folder / "log"
    command = [python, "-m", "llava_gateway", "serve", model, "--port", str(port), *flags]
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
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()


def send_post(server: Server, path: str, body: Any) -> socket.socket:
    """Send a request on a raw connection, and return the connection before the response."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(server.address, timeout=60)
    connection.sendall(head.encode() + content)
    return connection


def wait_until_ready(server: Server) -> None:
    """Wait until the server is ready. Fail with its log if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server ended:\n{server.log.read_text()}"
        try:
            if HTTP.get(f"{server.url}/ready", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server is not ready after {START_TIMEOUT} s:\n{server.log.read_text()}")
