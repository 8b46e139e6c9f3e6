"""The servers that are measured against each other, on the same checkpoint with the same engine flags."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME

HERE = Path(__file__).parent
FLAGS = (*ENGINE_FLAGS, "--max-num-seqs", "64", "--enforce-eager", "--max-model-len", "4096")
START_TIMEOUT = 180


@dataclass(frozen=True)
class Peer:
    name: str
    url: str
    process: psutil.Process
    seconds_to_ready: float

    def cpu(self) -> float:
        """Seconds of CPU that the front end, and only that, has used: its own process, all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_of_all(self) -> int:
        """Bytes of the front end and all its processes; what they share counts for each."""
        return self.rss() + sum(int(child.memory_info().rss) for child in self.process.children(recursive=True))

    def rss(self) -> int:
        """Bytes of the front end alone."""
        return int(self.process.memory_info().rss)


@contextmanager
def gateway(*flags: str) -> Iterator[Peer]:
    own = ("--allow-networks", "127.0.0.0/8", *flags)
    command = [sys.executable, "-m", "llava_gateway", "serve", MODEL_NAME, *FLAGS[len(ENGINE_FLAGS) :], *own]
    with _serve("gateway", command, "/ready") as peer:
        yield peer


@contextmanager
def vllm_serve() -> Iterator[Peer]:
    command = [sys.executable, str(HERE / "vllm_serve.py"), "serve", str(CHECKPOINT), "--served-model-name", MODEL_NAME, *FLAGS]
    with _serve("vllm serve", [*command, "--allowed-local-media-path", ""], "/health") as peer:
        yield peer


PEERS = {"vllm serve": vllm_serve, "gateway": gateway}


@contextmanager
def _serve(name: str, command: Sequence[str], ready: str) -> Iterator[Peer]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment, cwd=HERE)
        try:
            deadline = start + START_TIMEOUT
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start:\n{log.read().decode()[-3000:]}")
                time.sleep(0.2)
            yield Peer(name, url, psutil.Process(process.pid), time.monotonic() - start)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
