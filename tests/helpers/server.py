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

ROOT = Path(__file__).parents[2]
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


@dataclass(frozen=True)
class FeedbackServer:
    server: Server
    folder: Path
    keys: dict[str, str]

    def vote(self, given: dict[str, Any], key: str = "alice") -> httpx.Response:
        return httpx.post(f"{self.server.url}/feedback", json=given, headers={"key": self.keys[key]}, timeout=60)

    def records(self) -> list[dict[str, Any]]:
        log = self.folder / "feedback.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


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
