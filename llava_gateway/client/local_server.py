"""A server for one command: `llava-gateway serve` in a process of its own, on a free port of this machine, with a key of its own."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import httpx

from llava_gateway.engine.vllm.process_guard import ProcessGuard

COMMAND = (sys.executable, "-m", "llava_gateway", "serve")
POLL_INTERVAL = 0.1
"""Seconds between two checks whether the model has loaded."""
STOP_TIMEOUT = 30.0
"""Seconds that the server may take to end. Then it is killed."""
MAX_LOG = 1 << 16
"""Bytes at the end of the server's log that are searched for the reason of a failure."""
ENVIRONMENT = {
    "LLAVA_HOST": "127.0.0.1",
    "LLAVA_APIS": "openai",
    "LLAVA_AUTH": "auto",
    "LLAVA_LOG_LEVEL": "warning",
    "LLAVA_LOG_FORMAT": "text",
    "LLAVA_SSL_CERT_REQS": "0",
    **dict.fromkeys(("LLAVA_MORE_PORTS", "LLAVA_UDS", "LLAVA_ROOT_PATH", "LLAVA_CONTROLLER", "LLAVA_KEYS_FILE", "LLAVA_CORS_ORIGINS"), ""),
    **dict.fromkeys(("LLAVA_SSL_CERTFILE", "LLAVA_SSL_KEYFILE", "LLAVA_SSL_CA_CERTS", "LLAVA_SSL_CIPHERS"), ""),
}
"""Settings that only concern other clients. They override the user's environment and `llava-gateway.toml`."""


class LocalServerError(Exception):
    """The server has ended before it was ready. The message is one line for the user."""


@dataclass(frozen=True)
class LocalServer:
    """A running server."""

    url: str
    """The URL of its API, with /v1."""
    key: str
    """The only API key that it accepts, so that no other user of this machine can use the model."""


@contextmanager
def local_server(model: str, flags: Sequence[str] = ()) -> Iterator[LocalServer]:
    """Load a model and yield its server once it is ready. The server ends with the block, and also if this process is killed.

    `model`, `flags`: as for `llava-gateway serve`. Raises LocalServerError if the model does not load.
    """
    port, key = _free_port(), secrets.token_urlsafe(16)
    environment = os.environ | ENVIRONMENT | {"LLAVA_PORT": str(port), "LLAVA_API_KEYS": key}
    with tempfile.TemporaryFile() as log:
        guard = ProcessGuard()
        # In a session of its own: Ctrl-C in the terminal stops an answer, and not the server.
        process = subprocess.Popen(  # noqa: S603
            [*COMMAND, model, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            guard.watch([process.pid])
            _wait_until_ready(process, f"http://127.0.0.1:{port}", log)
            yield LocalServer(f"http://127.0.0.1:{port}/v1", key)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            finally:
                guard.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: BinaryIO) -> None:
    """Return when the model has loaded. Raises LocalServerError if the server ends before."""
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as http:
        while process.poll() is None:
            try:
                if http.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:  # the server does not listen yet
                pass
            time.sleep(POLL_INTERVAL)
    raise LocalServerError(_reason(log) or f"the server has ended with status {process.returncode}")


def _reason(log: BinaryIO) -> str:
    """Return the last message of the gateway in its log, or an empty string."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LOG))
    lines = log.read().decode(errors="replace").splitlines()
    own = [line for line in lines if line.startswith("llava-gateway") or " ERROR llava_gateway" in line]
    return own[-1].partition(": ")[2] if own else ""
