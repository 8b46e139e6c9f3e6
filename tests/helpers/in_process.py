"""A gateway in the test's own process, for tests whose subject is neither the engine nor the socket."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from helpers.requests import MODEL
from starlette.testclient import TestClient

from llava_gateway.app import build_app, create_app
from llava_gateway.engine.base import Engine
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import Settings


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway and yield a client of it, without a socket."""
    await gateway.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(gateway)), base_url="http://127.0.0.1") as http:
            yield http
    finally:
        await gateway.stop()


@contextmanager
def served(engine: Engine, **settings: Any) -> Iterator[TestClient]:
    """Run a server of the demo model's name with this engine, and yield a client of it, without a socket."""
    with TestClient(create_app(Settings(model=MODEL, **settings), engine=lambda: engine), "http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            pass
        yield client
