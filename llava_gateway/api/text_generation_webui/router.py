"""The routes of text-generation-webui's API, as it was until November 2023: HTTP and WebSockets below `/api/v1`."""

from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from llava_gateway.api.base import Api, json_response
from llava_gateway.api.text_generation_webui.chat import ChatBody
from llava_gateway.api.text_generation_webui.model import ModelBody
from llava_gateway.api.text_generation_webui.operations import DESCRIPTION
from llava_gateway.api.text_generation_webui.prompts import GenerateBody, TokenCountBody
from llava_gateway.api.text_generation_webui.running_answers import ConnectionApp, RunningAnswers, client_id
from llava_gateway.errors import GatewayError
from llava_gateway.http.endpoints import Handle, JsonEndpoint, JsonWebSocketEndpoint, WebSocketWriter
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ResponseWriter, retry_after
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, CompletionRequest

MAX_BYTES_PER_SECOND = 10_000_000
"""The upper bound of a stream's events. Each event of a chat repeats the history, images included, so a long history is sent less often."""
HISTORY_COPIES = 3
"""Copies of a history in memory while it is sent: the JSON, the message's text, and the bytes that wait for the client."""


class EventStream:
    """Sends the events of one WebSocket connection. The events of each answer are numbered from 0."""

    def __init__(self) -> None:
        self.sent = 0
        """The number of text events that the current answer has sent."""

    async def send_text(self, writer: WebSocketWriter, fields: dict[str, Any]) -> int:
        """Send an event with text, and return its size in bytes."""
        event = orjson.dumps({"event": "text_stream", "message_num": self.sent} | fields)
        await writer(orjson.Fragment(event))
        self.sent += 1
        return len(event)

    async def send_end(self, writer: WebSocketWriter) -> None:
        """Send the last event of the answer."""
        number, self.sent = self.sent, 0
        await writer({"event": "stream_end", "message_num": number}, last=True)

    async def render_error(self, error: GatewayError, writer: WebSocketWriter) -> None:
        """Send an error, and end the answer. The error's event has no number, so that the numbers of the other events have no gap."""
        await writer({"event": "error", "error": error_body(error)})
        await self.send_end(writer)


def error_body(error: GatewayError) -> dict[str, Any]:
    """Return the field `error` of a response or an event."""
    return {"message": error.message, "param": error.param, "code": error.code}


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error as the response to a request over HTTP."""
    await response.json(error.status, {"error": error_body(error)}, retry_after(error))


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create the API."""
    handlers = TextGenerationWebui(gateway)

    def endpoint(handle: Handle) -> JsonEndpoint:
        return JsonEndpoint(handle, render_error, gateway.admission, body_reader)

    def answer_route(path: str, handle: Callable[[str, JsonBody, ResponseWriter], Coroutine[Any, Any, None]]) -> Route:
        return Route(path, ConnectionApp(lambda address: endpoint(partial(handle, address))), methods=["POST"])

    def stream_route(
        path: str, handle: Callable[[str, EventStream, JsonBody, WebSocketWriter], Coroutine[Any, Any, None]]
    ) -> WebSocketRoute:
        def create_app(address: str) -> JsonWebSocketEndpoint:
            events = EventStream()
            return JsonWebSocketEndpoint(partial(handle, address, events), events.render_error, gateway.admission, body_reader)

        return WebSocketRoute(path, ConnectionApp(create_app))

    return Api(
        [
            answer_route("/api/v1/generate", handlers.generate),
            answer_route("/api/v1/chat", handlers.chat),
            stream_route("/api/v1/stream", handlers.stream),
            stream_route("/api/v1/chat-stream", handlers.chat_stream),
            Route("/api/v1/stop-stream", handlers.stop_stream, methods=["POST"]),
            Route("/api/v1/token-count", endpoint(handlers.token_count), methods=["POST"]),
            Route("/api/v1/model", handlers.model_name, methods=["GET"]),
            Route("/api/v1/model", endpoint(handlers.model), methods=["POST"]),
        ],
        render_error,
        description=DESCRIPTION,
    )


class TextGenerationWebui:
    """The handlers of the endpoints. `address`: the client's.

    The gateway streams every answer, even if the client gets one response, so that a stopped answer has its text so far.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._running = RunningAnswers()

    async def generate(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        completion = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await response.json(200, {"results": [{"text": await self._collect_text(address, completion)}]})

    async def chat(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        request = ChatBody.read(body)
        turns = request.turns()
        with self.gateway.answer_memory.reserved(HISTORY_COPIES * turns.length):
            text = await self._collect_text(address, request.to_chat(self._model(), self.gateway, turns))
            await response.json(200, {"results": [{"history": turns.render_history(text)}]})

    async def stream(self, address: str, events: EventStream, body: JsonBody, writer: WebSocketWriter) -> None:
        completion = GenerateBody.read(body).to_completion(self._model(), self.gateway)
        await self._stream_text(address, completion, events, writer, lambda text, sent: {"text": text[sent:]})

    async def chat_stream(self, address: str, events: EventStream, body: JsonBody, writer: WebSocketWriter) -> None:
        request = ChatBody.read(body)
        turns = request.turns()
        chat = request.to_chat(self._model(), self.gateway, turns)
        with self.gateway.answer_memory.reserved(HISTORY_COPIES * turns.length):
            await self._stream_text(address, chat, events, writer, lambda text, _: {"history": turns.render_history(text)})

    async def stop_stream(self, request: Request) -> Response:
        self._running.stop(client_id(request.client.host if request.client else ""))
        return json_response({"results": "success"})

    async def token_count(self, body: JsonBody, response: ResponseWriter) -> None:
        completion = TokenCountBody.read(body).to_completion(self._model(), self.gateway)
        tokens, *_ = await self.gateway.tokenize(completion)
        await response.json(200, {"results": [{"tokens": len(tokens)}]})

    async def model_name(self, request: Request) -> Response:
        return json_response({"result": self._model()})

    async def model(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, {"result": ModelBody.read(body).result(self._model(), self.gateway)})

    def _model(self) -> str:
        """Return the first model that the client's API key may use. Requests of this dialect do not name a model."""
        return next(iter(self.gateway.models.names()), self.gateway.model_name)

    async def _collect_text(self, address: str, request: ChatRequest | CompletionRequest) -> str:
        """Return the whole answer, or the text so far of an answer that is stopped."""
        text = ""
        async with self._running.until_stopped(client_id(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                text += delta.text
        return text

    async def _stream_text(
        self,
        address: str,
        request: ChatRequest | CompletionRequest,
        events: EventStream,
        writer: WebSocketWriter,
        fields: Callable[[str, int], dict[str, Any]],
    ) -> None:
        """Send an answer as events.

        `fields`: returns the fields of the next event, for the text so far and the number of its characters that have been sent.
        """
        text, sent, due = "", 0, 0.0
        async with self._running.until_stopped(client_id(address)), self.gateway.open(request) as deltas:
            async for delta in deltas:
                text += delta.text
                if sent < len(text) and monotonic() >= due:
                    due = monotonic() + await events.send_text(writer, fields(text, sent)) / MAX_BYTES_PER_SECOND
                    sent = len(text)
        if sent < len(text) or not events.sent:
            await events.send_text(writer, fields(text, sent))
        await events.send_end(writer)
