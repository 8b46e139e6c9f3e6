"""text-generation-webui's API, as it was until November 2023: HTTP below /api/v1, and WebSockets there for streams."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway.api.base import Api
from llava_gateway.api.schema import RequestBody
from llava_gateway.api.text_generation_webui.chat import ChatBody, GenerateBody, TokenCountBody
from llava_gateway.auth.rate_limits import current_lease
from llava_gateway.errors import GatewayError, InvalidRequest
from llava_gateway.http.endpoints import Handle, JsonEndpoint, JsonWebSocketEndpoint, WebSocketWriter
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ResponseWriter, retry_after
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, CompletionRequest


class ModelBody(RequestBody):
    """`POST /api/v1/model`."""

    action: str | None = Field(
        None, description="`info` or `list`; none: the model's name. Others are refused: the operator loads the model"
    )

    ignored: ClassVar = {
        "model_name": "it goes with loading a model",
        "args": "they go with loading a model",
        "settings": "they go with loading a model",
    }

    def result(self, model: str, gateway: Gateway) -> Any:
        """Raises GatewayError."""
        match self.action:
            case None | "":
                return model
            case "list":
                return gateway.models.names()
            case "info":
                settings = {"truncation_length": gateway.model(model).context_length, "instruction_template": "None"}
                return {"model_name": model, "lora_names": [], "shared.settings": settings, "shared.args": {}}
            case action:
                raise InvalidRequest(f"action: {action[:50]!r} is the operator's to do; there are info and list.", param="action")


class Events:
    """What one connection is sent. The events that answer a message are numbered from 0."""

    def __init__(self) -> None:
        self.sent = 0
        """How many, of the answer that is being sent."""

    async def text(self, answer: WebSocketWriter, fields: dict[str, Any]) -> int:
        """Returns the bytes that the event takes."""
        event = orjson.dumps({"event": "text_stream", "message_num": self.sent} | fields)
        await answer(orjson.Fragment(event))
        self.sent += 1
        return len(event)

    async def end(self, answer: WebSocketWriter) -> None:
        number, self.sent = self.sent, 0
        await answer({"event": "stream_end", "message_num": number}, last=True)

    async def render_error(self, error: GatewayError, answer: WebSocketWriter) -> None:
        """An error's event has no number, so that those of a text and its end go on as they do without one."""
        await answer({"event": "error", "error": error_body(error)})
        await self.end(answer)


def error_body(error: GatewayError) -> dict[str, Any]:
    return {"message": error.message, "param": error.param, "code": error.code}


class RunningAnswers:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._callers: dict[asyncio.Timeout, str] = {}

    @asynccontextmanager
    async def until_stopped(self, client_of: str) -> AsyncIterator[None]:
        """The block ends early, and without an error, if its caller says stop."""
        timer = asyncio.timeout(None)
        try:
            async with timer:
                self._callers[timer] = client_of
                yield
        except TimeoutError:
            if not timer.expired():
                raise
        finally:
            self._callers.pop(timer, None)

    def stop(self, client_of: str) -> None:
        """End all answers of this caller."""
        for timer in [timer for timer, whose in self._callers.items() if whose == client_of]:
            del self._callers[timer]  # once only: what has been told to stop cannot be told again
            timer.reschedule(asyncio.get_running_loop().time())


def client_of(address: str) -> str:
    """Whose request this is: the key's that came with it or, where none is asked for, its address's."""
    lease = current_lease()
    return lease.key.digest if lease else address


@dataclass(frozen=True)
class ByClient:
    """An ASGI app made anew for each connection, from the client's address (empty at a socket that has none)."""

    make: Callable[[str], ASGIApp]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        await self.make(client[0] if client else "")(scope, receive, send)


RATE = 10_000_000
"""Bytes of events in a second, for each stream. Those of a chat repeat its history, pictures and all: a long one is sent less often."""
COPIES = 3
"""Of a history that is sent: JSON, a message's text, and what waits for the client."""


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    webui = TextGenerationWebui(gateway)

    def endpoint(handle: Handle) -> JsonEndpoint:
        return JsonEndpoint(handle, render_error, gateway.admission, body_reader)

    def stoppable(path: str, handle: Callable[[str, JsonBody, ResponseWriter], Coroutine[Any, Any, None]]) -> Route:
        return Route(path, ByClient(lambda address: endpoint(partial(handle, address))), methods=["POST"])

    def socket(path: str, handle: Callable[[str, Events, JsonBody, WebSocketWriter], Coroutine[Any, Any, None]]) -> WebSocketRoute:
        def connect(address: str) -> JsonWebSocketEndpoint:
            events = Events()
            return JsonWebSocketEndpoint(partial(handle, address, events), events.render_error, gateway.admission, body_reader)

        return WebSocketRoute(path, ByClient(connect))

    return Api(
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
        render_error,
    )


class TextGenerationWebui:
    """`address` is the client's. Every answer is a stream within, so that all of them can be stopped and keep what they have said."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._running = RunningAnswers()

    async def generate(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        request = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await response.json(200, {"results": [{"text": await self._whole(address, request)}]})

    async def chat(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        asked = ChatBody.read(body)
        turns = asked.turns()
        with self.gateway.answer_memory.reserved(COPIES * turns.length):
            text = await self._whole(address, asked.to_chat(self._model(), self.gateway, turns))
            await response.json(200, {"results": [{"history": turns.history(text)}]})

    async def stream(self, address: str, events: Events, body: JsonBody, answer: WebSocketWriter) -> None:
        request = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await self._stream(address, request, events, answer, lambda said, sent: {"text": said[sent:]})

    async def chat_stream(self, address: str, events: Events, body: JsonBody, answer: WebSocketWriter) -> None:
        asked = ChatBody.read(body)
        turns = asked.turns()
        request = asked.to_chat(self._model(), self.gateway, turns)
        with self.gateway.answer_memory.reserved(COPIES * turns.length):
            await self._stream(address, request, events, answer, lambda said, _: {"history": turns.history(said)})

    async def stop_stream(self, request: Request) -> Response:
        self._running.stop(client_of(request.client.host if request.client else ""))
        return _json({"results": "success"})

    async def token_count(self, body: JsonBody, response: ResponseWriter) -> None:
        request = TokenCountBody.read(body).to_completion(self._model(), self.gateway)
        tokens, _ = await self.gateway.tokenize(request)
        await response.json(200, {"results": [{"tokens": len(tokens)}]})

    async def model_name(self, request: Request) -> Response:
        return _json({"result": self._model()})

    async def model(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, {"result": ModelBody.read(body).result(self._model(), self.gateway)})

    def _model(self) -> str:
        """The first name of the model that the caller may use; the dialect has none in its requests."""
        return next(iter(self.gateway.models.names()), self.gateway.model_name)

    async def _whole(self, address: str, request: ChatRequest | CompletionRequest) -> str:
        said = ""
        async with self._running.until_stopped(client_of(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                said += delta.text
        return said

    async def _stream(
        self,
        address: str,
        request: ChatRequest | CompletionRequest,
        events: Events,
        answer: WebSocketWriter,
        fields: Callable[[str, int], dict[str, Any]],
    ) -> None:
        """`fields`: of the event that tells what has been said, of which so many characters have been sent."""
        said, sent, due = "", 0, 0.0
        async with self._running.until_stopped(client_of(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                said += delta.text
                if sent < len(said) and monotonic() >= due:
                    due = monotonic() + await events.text(answer, fields(said, sent)) / RATE
                    sent = len(said)
        if sent < len(said) or not events.sent:
            await events.text(answer, fields(said, sent))
        await events.end(answer)


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    await response.json(error.status, {"error": error_body(error)}, retry_after(error))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
