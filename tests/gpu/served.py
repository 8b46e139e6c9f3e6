"""A server with a checkpoint in the shapes of LLaVA-1.5-7B and random weights."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from helpers.gpu import Device
from helpers.llava_15_shapes import FLAGS
from helpers.processes import descendants
from helpers.server import Server, serve, wait_until_ready

from llava_gateway.demo.images import data_uri, draw, encode

Note = Callable[[str], None]
"""Writes a line to the end of the output."""
GRID = ("red", "blue", "green", "orange")
CACHE_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
"""A KV cache of fixed size makes the memory of several starts comparable. 4 GiB are 8,192 tokens of LLaVA-1.5-7B."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    server: Server
    device: Device
    memory_before: int
    """The GPUs' memory that was in use before the start, in MiB."""
    seconds: float
    """The time from the start until the server was ready."""

    def ask(self, **fields: Any) -> dict[str, Any]:
        """Return an answer of 8 tokens to a question about one image."""
        content = [{"type": "image_url", "image_url": {"url": data_uri(encode(draw(GRID)))}}, {"type": "text", "text": "What?"}]
        asked = {"model": "shapes", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "ignore_eos": True}
        answer = httpx.post(f"{self.server.v1}/chat/completions", json=asked | fields, timeout=120)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def is_ready(self) -> bool:
        return httpx.get(f"{self.server.url}/ready", timeout=60).status_code == 200

    def processes(self) -> list[psutil.Process]:
        """Return the engine's first process and its descendants."""
        (engine,) = descendants(self.server.process.pid, "EngineCore")
        return [engine, *engine.children(recursive=True)]

    def memory(self) -> int:
        """Return the GPUs' memory that is in use since before the start, in MiB."""
        return self.device.memory_used() - self.memory_before

    def summary(self) -> str:
        memory = f", {self.memory():,} MiB of GPU memory" if self.device.cards else ""
        return f"ready after {self.seconds:.0f} s{memory}"


@contextmanager
def serve_shapes(device: Device, checkpoint: Path, folder: Path, *flags: str) -> Iterator[Served]:
    """Serve the checkpoint until the block ends. `folder`: for the log. `flags`: further flags of vLLM."""
    cache = ("--kv-cache-memory-bytes", str(CACHE_BYTES[device.kind]), "--max-num-seqs", "32", "--served-model-name", "shapes")
    before, start = device.memory_used(), time.monotonic()
    with serve(folder, *FLAGS, *cache, *flags, model=str(checkpoint), wait=False) as server:
        wait_until_ready(server)
        yield Served(server, device, before, time.monotonic() - start)


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
