"""`llava-gateway serve [MODEL] [flags] [vLLM flags]`."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence

import uvicorn

from llava_gateway.app import create_app
from llava_gateway.cli import flags
from llava_gateway.engine import EngineStartError
from llava_gateway.version import __version__
from llava_gateway.web.protocol import HttpProtocol

log = logging.getLogger(__name__)

MALLOPT = {-3: 32 << 20, -1: 256 << 20}
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD (malloc.h), in bytes."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM. Exit status 1 if the model does not load, 2 if a flag is wrong."""
    settings, engine_flags = flags.parse(arguments)
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("llava_gateway").setLevel(settings.log_level.upper())
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it follows VLLM_LOGGING_LEVEL once it is imported
    log.debug("settings: %s", settings.model_dump_json(exclude={"image_proxy"}))  # which may hold a password
    failures: list[EngineStartError] = []

    def give_up(error: EngineStartError) -> None:
        failures.append(error)
        server.should_exit = True

    _keep_large_buffers()
    app = create_app(settings, engine_flags, on_start_failure=give_up)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            http=HttpProtocol,
            timeout_graceful_shutdown=settings.shutdown_timeout,
        )
    )
    log.info("llava-gateway %s on http://%s:%d; the model is loading", __version__, settings.host, settings.port)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # uvicorn raises them again when it has drained
        signal.signal(number, stop)
    server.run()
    sys.stderr.flush()
    # The engine's processes have ended in the lifespan. What may be left is a thread that still imports vLLM and that nobody can interrupt.
    os._exit(1 if failures or not server.started else 0)


def _keep_large_buffers() -> None:
    """Bodies with images are megabytes, and each lives for milliseconds. Left alone, glibc gives their memory back to the system each time,
    and the next request has it faulted in anew, which costs more than what is done with it."""
    with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOPT.items():
            mallopt(option, value)
