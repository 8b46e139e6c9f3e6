"""A gateway in the test's own process, for tests whose subject is neither the engine nor the socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from llava_gateway.app import build_app
from llava_gateway.serving.gateway import Gateway


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway and yield a client of it, without a socket."""
    await gateway.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(gateway)), base_url="http://127.0.0.1") as http:
            yield http
    finally:
        await gateway.stop()
