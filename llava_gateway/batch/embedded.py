"""The gateway in this process, asked as any server is, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx

from llava_gateway.app import create_app
from llava_gateway.batch.lines import BatchError
from llava_gateway.errors import EngineStartError, Unavailable
from llava_gateway.settings import Settings

LOOK_INTERVAL = 0.1
WITHOUT_CLIENTS = {"apis": ("openai",), "api_keys": (), "keys_file": "", "auth": "auto", "cors_origins": ()}
"""Settings for others than the one who runs it."""


@asynccontextmanager
async def embedded(settings: Settings, engine_flags: Sequence[str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API, once the model has loaded; the engine ends with the block. Raises SettingsError, and BatchError if the model
    does not load."""
    failures: list[EngineStartError] = []
    app = create_app(settings.model_copy(update=WITHOUT_CLIENTS), engine_flags, on_start_failure=failures.append)
    async with app.router.lifespan_context(app):
        while True:
            try:
                app.state.gateway.check_ready()
                break
            except Unavailable:
                if failures:
                    raise BatchError("nothing was asked: the model did not load") from failures[0]
                await asyncio.sleep(LOOK_INTERVAL)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1/", timeout=None) as client:  # noqa: S113
            yield client
