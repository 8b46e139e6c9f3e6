"""text-generation-webui's API, as it was until November 2023: HTTP below /api/v1, and WebSockets there for streams."""

from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from llava_gateway.chat import ChatRequest, CompletionRequest
from llava_gateway.doors.webui.chat import ChatBody
from llava_gateway.doors.webui.generate import GenerateBody, TokenCountBody
from llava_gateway.doors.webui.model import ModelBody
from llava_gateway.doors.webui.render import Events, render_error
from llava_gateway.doors.webui.running import ByClient, Running, caller
from llava_gateway.errors import GatewayError
from llava_gateway.gateway import Gateway
from llava_gateway.web.body import Bodies, JsonBody
from llava_gateway.web.door import Door
from llava_gateway.web.endpoint import Handle, JsonEndpoint
from llava_gateway.web.reply import Reply, retry_after
from llava_gateway.web.socket import Answer, JsonSocket

RATE = 10_000_000
"""Bytes of events in a second, for each stream. Those of a chat repeat its history, pictures and all: a long one is sent less often."""
COPIES = 3
"""Of a history that is sent: JSON, a message's text, and what waits for the client."""


def door(gateway: Gateway, bodies: Bodies) -> Door:
    webui = Webui(gateway)

    def endpoint(handle: Handle) -> JsonEndpoint:
        return JsonEndpoint(handle, fail, gateway.admission, bodies)

    def stoppable(path: str, handle: Callable[[str, JsonBody, Reply], Coroutine[Any, Any, None]]) -> Route:
        return Route(path, ByClient(lambda address: endpoint(partial(handle, address))), methods=["POST"])

    def socket(path: str, handle: Callable[[str, Events, JsonBody, Answer], Coroutine[Any, Any, None]]) -> WebSocketRoute:
        def connect(address: str) -> JsonSocket:
            events = Events()
            return JsonSocket(partial(handle, address, events), events.fail, gateway.admission, bodies)

        return WebSocketRoute(path, ByClient(connect))

    return Door(
        [
            stoppable("/api/v1/generate", webui.generate),
            stoppable("/api/v1/chat", webui.chat),
            socket("/api/v1/stream", webui.stream),
            socket("/api/v1/chat-stream", webui.chat_stream),
            Route("/api/v1/stop-stream", webui.stop_stream, methods=["POST"]),
            Route("/api/v1/token-count", endpoint(webui.token_count), methods=["POST"]),
            Route("/api/v1/model", webui.model_name, methods=["GET"]),
            Route("/api/v1/model", endpoint(webui.model), methods=["POST"]),
        ],
        fail,
    )


class Webui:
    """`address` is the client's. Every answer is a stream within, so that all of them can be stopped and keep what they have said."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._running = Running()

    async def generate(self, address: str, body: JsonBody, reply: Reply) -> None:
        request = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await reply.json(200, {"results": [{"text": await self._whole(address, request)}]})

    async def chat(self, address: str, body: JsonBody, reply: Reply) -> None:
        asked = ChatBody.read(body)
        turns = asked.turns()
        with self.gateway.answers.reserved(COPIES * turns.length):
            text = await self._whole(address, asked.to_chat(self._model(), self.gateway, turns))
            await reply.json(200, {"results": [{"history": turns.history(text)}]})

    async def stream(self, address: str, events: Events, body: JsonBody, answer: Answer) -> None:
        request = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await self._stream(address, request, events, answer, lambda said, sent: {"text": said[sent:]})

    async def chat_stream(self, address: str, events: Events, body: JsonBody, answer: Answer) -> None:
        asked = ChatBody.read(body)
        turns = asked.turns()
        request = asked.to_chat(self._model(), self.gateway, turns)
        with self.gateway.answers.reserved(COPIES * turns.length):
            await self._stream(address, request, events, answer, lambda said, _: {"history": turns.history(said)})

    async def stop_stream(self, request: Request) -> Response:
        self._running.stop(caller(request.client.host if request.client else ""))
        return _json({"results": "success"})

    async def token_count(self, body: JsonBody, reply: Reply) -> None:
        request = TokenCountBody.read(body).to_completion(self._model(), self.gateway)
        tokens, _ = await self.gateway.tokenize(request)
        await reply.json(200, {"results": [{"tokens": len(tokens)}]})

    async def model_name(self, request: Request) -> Response:
        return _json({"result": self._model()})

    async def model(self, body: JsonBody, reply: Reply) -> None:
        await reply.json(200, {"result": ModelBody.read(body).result(self._model(), self.gateway)})

    def _model(self) -> str:
        """The first name of the model that the caller may use; the dialect has none in its requests."""
        return next(iter(self.gateway.models.names()), self.gateway.model_name)

    async def _whole(self, address: str, request: ChatRequest | CompletionRequest) -> str:
        said = ""
        async with self._running.until_stopped(caller(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                said += delta.text
        return said

    async def _stream(
        self,
        address: str,
        request: ChatRequest | CompletionRequest,
        events: Events,
        answer: Answer,
        fields: Callable[[str, int], dict[str, Any]],
    ) -> None:
        """`fields`: of the event that tells what has been said, of which so many characters have been sent."""
        said, sent, due = "", 0, 0.0
        async with self._running.until_stopped(caller(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                said += delta.text
                if sent < len(said) and monotonic() >= due:
                    due = monotonic() + await events.text(answer, fields(said, sent)) / RATE
                    sent = len(said)
        if sent < len(said) or not events.sent:
            await events.text(answer, fields(said, sent))
        await events.end(answer)


async def fail(error: GatewayError, reply: Reply) -> None:
    await reply.json(error.status, {"error": render_error(error)}, retry_after(error))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
