"""`llava-gateway serve [MODEL] [flags] [vLLM flags]`: run the server."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway import __version__
from llava_gateway.app import create_app
from llava_gateway.cli import flags
from llava_gateway.cli.listeners import ListenError, check_keys, listen
from llava_gateway.errors import EngineStartError
from llava_gateway.http.uvicorn_protocol import http_protocol
from llava_gateway.http.websocket_protocol import websocket_protocol
from llava_gateway.observability import logging as logs
from llava_gateway.settings import Settings, SettingsError, server_url

log = logging.getLogger(__name__)

MALLOPT = {-3: 32 << 20, -1: 256 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD (malloc.h), in bytes."""
ERROR_SEND_TIMEOUT = 5
"""Seconds to send the errors of aborted requests at shutdown."""
EXIT_TIMEOUT = 30.0
"""Seconds that a shutdown after a failure may take. After a failed start, vLLM's sockets can hang it forever."""

make_parser = flags.make_parser


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status.

    1: a port cannot be opened, the model does not load, or the engine has died and `on_engine_death` is `exit`. 2: a flag is wrong.
    """
    settings, engine_flags = flags.parse(arguments)
    logs.set_up(settings)
    secrets = {"image_proxy", "api_keys", "rate_limit_storage", "state"}
    log.debug("settings: %s", settings.model_dump_json(exclude=secrets))
    failures: list[str] = []

    def give_up(error: EngineStartError | None = None) -> None:
        failures.append(str(error))
        server.should_exit = True
        _exit_later()

    _reuse_freed_memory()
    try:
        check_keys(settings)
        on_death = give_up if settings.on_engine_death == "exit" else None
        app = create_app(settings, engine_flags, on_start_failure=give_up, on_engine_death=on_death)
        sockets = listen(settings)
        server = Server(settings, app)
    except SettingsError as error:
        sys.stderr.write(f"llava-gateway: {error}\n")
        return 2
    except ListenError as error:
        sys.stderr.write(f"llava-gateway: {error}\n")
        return 1
    log.info("llava-gateway %s on %s; the model is loading", __version__, settings.uds or server_url(settings))
    server.run(sockets)
    sys.stderr.flush()
    # The lifespan has ended the engine's processes. But a thread may still import vLLM, and it cannot be interrupted.
    os._exit(1 if failures or not server.started else 0)


class Server(uvicorn.Server):
    """A uvicorn server that drains before it stops listening.

    After the first signal, /ready reports 503 and requests in flight may finish. A second signal aborts them.
    """

    def __init__(self, settings: Settings, app: Starlette) -> None:
        """Raises SettingsError if the certificate or its key cannot be used."""
        config = uvicorn.Config(
            _under(settings.root_path, app) if settings.root_path else app,
            host=settings.host,
            port=settings.port,
            **_tls(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            http=http_protocol(settings),
            ws=websocket_protocol(settings, app.state.body_reader),
            ws_max_size=settings.max_body_mb << 20,
            ws_per_message_deflate=False,
            timeout_keep_alive=settings.timeout_keep_alive,
            timeout_graceful_shutdown=ERROR_SEND_TIMEOUT,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # of ssl.SSLContext
            raise SettingsError(f"ssl_certfile {settings.ssl_certfile}: the certificate or its key cannot be used ({error})") from error
        super().__init__(config)
        self._gateway = app.state.gateway
        self._grace = settings.shutdown_timeout
        self._signals = 0
        self._hurry = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve connections on the sockets. A SIGHUP then stops the server like a SIGTERM."""
        await super().startup(sockets)
        signal.signal(signal.SIGHUP, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal. `on_tick` reacts to it, within 0.1 s."""
        self._signals += 1

    async def on_tick(self, counter: int) -> bool:
        """Start to drain after a signal. uvicorn calls this every 0.1 s, and shuts down when it returns True."""
        if self._signals and not self._draining:
            log.info("shutting down: no new requests; requests in flight have %d s to finish", self._grace)
            self._draining = asyncio.create_task(self._gateway.drain(self._grace, self._hurry))
        if self._signals > 1:
            self._hurry.set()
        drained = self._draining is not None and self._draining.done()
        return await super().on_tick(counter) or drained


def _tls(settings: Settings) -> dict[str, Any]:
    """Return uvicorn's arguments for TLS. Raises SettingsError."""
    if not settings.ssl_certfile:
        if settings.ssl_keyfile or settings.ssl_ca_certs or settings.ssl_cert_reqs or settings.ssl_ciphers:
            raise SettingsError("the settings that begin with ssl_ need ssl_certfile")
        return {}
    optional = {"ssl_keyfile": settings.ssl_keyfile, "ssl_ca_certs": settings.ssl_ca_certs, "ssl_ciphers": settings.ssl_ciphers}
    given = {name: value for name, value in optional.items() if value}
    return {"ssl_certfile": settings.ssl_certfile, "ssl_cert_reqs": settings.ssl_cert_reqs} | given


def _under(root_path: str, app: ASGIApp) -> ASGIApp:
    """Return the app for a proxy that serves it under a path. The proxy may leave that path in the requests, or remove it."""
    root_path = "/" + root_path.strip("/")

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": root_path}, receive, send)

    return wrapped


def _exit_later() -> None:
    """End the process in EXIT_TIMEOUT seconds, in case that the engine's shutdown hangs. The engine's processes end with this one."""
    timer = threading.Timer(EXIT_TIMEOUT, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _reuse_freed_memory() -> None:
    """Let glibc keep large freed buffers for the next request.

    Bodies with images have megabytes and live for milliseconds. By default, glibc returns their memory to the system each time. The page
    faults of the next request then cost more than the request's own work.
    """
    with contextlib.suppress(OSError, AttributeError):  # on a system without glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOPT.items():
            mallopt(option, value)
