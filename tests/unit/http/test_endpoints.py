"""What an endpoint does once its answer has left, behind a real uvicorn."""

import asyncio

import httpx
import pytest
import uvicorn
from helpers.server import free_port

from llava_gateway.api.openai.router import render_error
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ResponseWriter
from llava_gateway.http.uvicorn_protocol import http_protocol
from llava_gateway.observability import metrics
from llava_gateway.serving.admission import Admission, RequestQueue
from llava_gateway.settings import Settings


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_after_the_last_chunk_does_not_cancel_the_request(stream: bool) -> None:
    """Such as booking tokens with Redis. Servers call a client whose answer is whole gone, but it did not leave before that."""
    done: list[str] = []
    over = asyncio.Event()

    async def handle(body: JsonBody, reply: ResponseWriter) -> None:
        try:
            if stream:
                async with reply.events(15):
                    await reply.event(b"{}")
            else:
                await reply.json(200, {})
            await asyncio.sleep(0.05)
            done.append("booked")
        except asyncio.CancelledError:
            done.append("cancelled")
            raise
        finally:
            over.set()

    async def ask() -> int:
        settings = Settings()
        app = JsonEndpoint(handle, render_error, Admission(settings, [RequestQueue(settings)]), RequestBodyReader(settings))
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, http=http_protocol(settings), lifespan="off", log_level="error"))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 # it has no event
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client:
            status = (await client.post(f"http://127.0.0.1:{port}/", json={})).status_code
            await over.wait()
        server.should_exit = True
        await serving
        return status

    left = metrics.DISCONNECTS._value.get()
    assert (asyncio.run(ask()), done) == (200, ["booked"])
    assert metrics.DISCONNECTS._value.get() == left
