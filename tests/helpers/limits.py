"""API keys with limits, and checks for tests of rate limits."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.server import free_port

from llava_gateway.auth import rate_counts as counts
from llava_gateway.auth.api_keys import Key, digest
from llava_gateway.auth.rate_limits import KeyLease, RateLimited


def limited(**limits: Any) -> Key:
    return Key("carol", digest("carol"), **limits)


@contextmanager
def stopped_clock() -> Iterator[SimpleNamespace]:
    """Replace the clock of the counts in memory by one that stands still. `now`: in seconds."""
    stopped = SimpleNamespace(now=60_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "time", SimpleNamespace(monotonic_ns=lambda: round(stopped.now * 1e6) * 1000))
        yield stopped


async def refused(work: Awaitable[object]) -> RateLimited:
    with pytest.raises(RateLimited) as refusal:
        await work
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    return refusal.value


def headers(holder: KeyLease | RateLimited) -> dict[str, str]:
    pairs = holder.headers() if isinstance(holder, KeyLease) else holder.headers
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs}


def needs_redis() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")


class Redis:
    """A real Redis server on a free port that saves nothing to disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/1"

    def __enter__(self) -> "Redis":
        flags = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        self.process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)
        raise AssertionError("redis-server does not listen")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
