"""The servers that are compared: `vllm serve`, `vllm-rs` and this gateway. They serve one checkpoint with the same engine flags."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME

VLLM, RUST, GATEWAY = "vllm serve", "vllm-rs", "gateway"
HERE = Path(__file__).parent
CONTEXT = 8192
"""Tokens of context. Ten images have 5,760 tokens. The demo model was trained with 4,096, so its answer about ten images is not checked."""
FLAGS = (*ENGINE_FLAGS, "--max-num-seqs", "64", "--enforce-eager", "--max-model-len", str(CONTEXT))
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
BEGIN_OF_TEXT = {"add_special_tokens": True}
"""A field of requests to vLLM. Without it vLLM leaves out the `<s>` of LLaVA's prompt, and the demo model describes images that are not
there. The gateway always writes the `<s>`."""
START_TIMEOUT = 600
"""Seconds until a server must be ready. On a GPU the first start compiles the model."""


@dataclass(frozen=True)
class Served:
    """The model that all servers of a comparison serve."""

    checkpoint: Callable[[], AbstractContextManager[Path]]
    """Writes the checkpoint to a temporary folder, for the time of a block."""
    flags: tuple[str, ...]
    """vLLM's engine flags."""


@dataclass(frozen=True)
class Peer:
    """A running server."""

    name: str
    url: str
    server: psutil.Process
    """The process that was started."""
    front_end: psutil.Process
    """The process that answers HTTP requests: `server`, or a child of it."""
    fields: Mapping[str, Any]
    """Fields of each chat request."""
    seconds_to_ready: float

    def cpu(self) -> float:
        """Return the seconds of CPU that the front end has used: its process and its helpers, but no process of an engine.

        A helper that has ended no longer counts.
        """
        total = cpu_ns(self.front_end.pid)
        for helper in helpers(self.front_end):
            with suppress(OSError):
                total += cpu_ns(helper.pid)
        return total / 1e9

    def rss_of_all(self) -> int:
        """Return the resident bytes of all processes of the server. Shared pages are counted once for each process."""
        return sum(int(process.memory_info().rss) for process in [self.server, *self.server.children(recursive=True)])

    def rss(self) -> int:
        """Return the resident bytes of the process that answers HTTP requests."""
        return int(self.front_end.memory_info().rss)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process, in nanoseconds.

    psutil and /proc count in steps of 10 ms. The kernel's clock of the process (clock_getcpuclockid(3)) is exact. Raises OSError if the
    process has ended.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def helpers(process: psutil.Process) -> list[psutil.Process]:
    """Return the descendants of a process without engines. vLLM names an engine's processes `VLLM::...`."""
    found = []
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            if not child.name().startswith("VLLM::"):
                found += [child, *helpers(child)]
    return found


@contextmanager
def long_checkpoint() -> Iterator[Path]:
    """Write the demo checkpoint with a context of CONTEXT tokens to a temporary folder.

    Only config.json is changed. vLLM can also be told to exceed the checkpoint's context, but it then computes NaN for later positions.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / MODEL_NAME
        shutil.copytree(CHECKPOINT, checkpoint)
        config = json.loads((checkpoint / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = CONTEXT
        (checkpoint / "config.json").write_text(json.dumps(config))
        yield checkpoint


DEMO = Served(long_checkpoint, FLAGS)


@contextmanager
def gateway(*flags: str, served: Served = DEMO) -> Iterator[Peer]:
    """Serve with this gateway. `flags`: further flags of `llava-gateway serve`."""
    own = ("--served-model-name", MODEL_NAME, "--allow-networks", "127.0.0.0/8", *flags)
    with served.checkpoint() as checkpoint:
        command = [sys.executable, "-m", "llava_gateway", "serve", str(checkpoint), *served.flags, *own]
        with _serve(GATEWAY, command, "/ready", {}, {}) as peer:
            yield peer


@contextmanager
def vllm_serve(served: Served = DEMO) -> Iterator[Peer]:
    """Serve with vLLM's front end in Python."""
    flags = (*served.flags, "--allowed-local-media-path", "")
    with served.checkpoint() as checkpoint, _serve(VLLM, _vllm_command(checkpoint, flags), "/health", {}, BEGIN_OF_TEXT) as peer:
        yield peer


@contextmanager
def vllm_rs(program: Path, served: Served = DEMO) -> Iterator[Peer]:
    """Serve with vLLM's front end in Rust. `program`: the path of `vllm-rs`.

    The front end refuses `--mm-processor-cache-gb`. Without `--chat-template-content-format` its prompts lack the line break after each
    image.
    """
    flags = (*_without(served.flags, "--mm-processor-cache-gb"), "--chat-template-content-format", "openai")
    environment = {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(program)}
    with served.checkpoint() as checkpoint, _serve(RUST, _vllm_command(checkpoint, flags), "/health", environment, BEGIN_OF_TEXT) as peer:
        yield peer


def _without(flags: Sequence[str], flag: str) -> Sequence[str]:
    """Return the flags without one flag and its value."""
    place = flags.index(flag) if flag in flags else len(flags)
    return [*flags[:place], *flags[place + 2 :]]


def _vllm_command(checkpoint: Path, flags: Sequence[str]) -> list[str]:
    return [sys.executable, str(HERE / "vllm_serve.py"), "serve", str(checkpoint), "--served-model-name", MODEL_NAME, *flags]


@contextmanager
def _serve(name: str, command: Sequence[str], ready: str, environment: dict[str, str], fields: Mapping[str, Any]) -> Iterator[Peer]:
    """Run a server until the block ends. `ready`: the path that answers 200 when the server is ready. Raises RuntimeError."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        whole = os.environ | ENVIRONMENT | environment
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=whole, cwd=HERE)
        try:
            deadline = start + START_TIMEOUT
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start:\n{log.read().decode()[-3000:]}")
                time.sleep(0.2)
            seconds = time.monotonic() - start
            server = psutil.Process(process.pid)
            front_end = next((child for child in server.children() if child.name() == "vllm-rs"), server)
            assert (front_end is not server) == (name == RUST)
            yield Peer(name, url, server, front_end, fields, seconds)
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
