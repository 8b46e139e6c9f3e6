"""The gateway in this process. Its client is an ordinary HTTP client that calls the app directly, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx

from llava_gateway.app import create_app
from llava_gateway.batch.lines import BatchError
from llava_gateway.errors import EngineStartError, Unavailable
from llava_gateway.settings import Settings

POLL_INTERVAL = 0.1
"""Seconds between two checks whether the model has loaded."""
SINGLE_USER_SETTINGS = {"apis": ("openai",), "api_keys": (), "keys_file": "", "auth": "auto", "cors_origins": (), "controller": ""}
"""These settings only concern other clients, and a batch has none."""


@asynccontextmanager
async def embedded(settings: Settings, engine_flags: Sequence[str]) -> AsyncIterator[httpx.AsyncClient]:
    """Start the gateway and yield a client of its API once the model has loaded. The engine ends with the block.

    `engine_flags`: vLLM's own flags. Raises SettingsError, or BatchError if the model does not load.
    """
    failures: list[EngineStartError] = []
    app = create_app(settings.model_copy(update=SINGLE_USER_SETTINGS), engine_flags, on_start_failure=failures.append)
    async with app.router.lifespan_context(app):
        while True:
            try:
                app.state.gateway.check_ready()
                break
            except Unavailable:
                if failures:
                    raise BatchError("no request was sent: the model did not load") from failures[0]
                await asyncio.sleep(POLL_INTERVAL)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1/", timeout=None) as client:  # noqa: S113
            yield client
