"""The routes of Ollama's API."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from llava_gateway.api.base import Api, json_response
from llava_gateway.api.ollama.models import ModelDescriptions
from llava_gateway.api.ollama.operations import DESCRIPTION, NDJSON, REFUSALS, Refusal
from llava_gateway.api.ollama.request import ChatBody, GenerateBody, PullBody, ShowBody
from llava_gateway.api.ollama.response import AnswerRenderer, Stopwatch, render_empty
from llava_gateway.errors import GatewayError, InvalidRequest
from llava_gateway.http.endpoints import Handle, JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import JSON, ResponseWriter, retry_after
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, CompletionRequest

OLLAMA_VERSION = "0.32.15"
"""The version of Ollama whose API this is. Clients refuse servers of a version that lacks a feature."""
SILENCE = b" "
"""Breaks a silence. An empty line would not be JSON, and a space before a JSON object has no meaning."""


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create Ollama's API."""
    handlers = Ollama(gateway)

    def post(path: str, handle: Handle) -> Route:
        return Route(path, JsonEndpoint(handle, render_error, gateway.admission, body_reader), methods=["POST"])

    def refuse(refusal: Refusal) -> Route:
        async def handle(request: Request) -> Response:
            raise InvalidRequest(refusal.message)

        return Route(refusal.path, handle, methods=[refusal.method])

    routes = [
        RootRoute(has_chat_page="chat_ui" in gateway.settings.apis),
        post("/api/chat", handlers.chat),
        post("/api/generate", handlers.generate),
        post("/api/show", handlers.show),
        post("/api/pull", handlers.pull),
        Route("/api/tags", _getter(handlers.models.tags)),
        Route("/api/ps", _getter(handlers.models.running)),
        Route("/api/version", _getter(lambda: {"version": OLLAMA_VERSION})),
        *map(refuse, REFUSALS),
    ]
    return Api([*routes], render_error, public=("/",), description=DESCRIPTION)


class RootRoute(Route):
    """`/` for Ollama's clients, which look there for a running server. A browser asks for HTML, and gets the chat page."""

    def __init__(self, *, has_chat_page: bool) -> None:
        super().__init__("/", _is_running)
        self._has_chat_page = has_chat_page

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self._has_chat_page and scope["type"] == "http":
            is_browser = "text/html" in Headers(scope=scope).get("accept", "")
            if is_browser or scope["method"] not in ("GET", "HEAD"):
                return Match.NONE, {}
        return super().matches(scope)


class Ollama:
    """The handlers of the endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.models = ModelDescriptions(gateway)

    async def chat(self, body: JsonBody, response: ResponseWriter) -> None:
        stopwatch, request = Stopwatch(), ChatBody.read(body)
        model = self.models.find(request.model)
        if not request.messages:
            await response.json(200, render_empty(request.model or model, chat=True))
            return
        await self._answer(request, model, request.to_chat(model), stopwatch, response)

    async def generate(self, body: JsonBody, response: ResponseWriter) -> None:
        stopwatch, request = Stopwatch(), GenerateBody.read(body)
        model = self.models.find(request.model)
        if request.is_empty:
            await response.json(200, render_empty(request.model or model, chat=False))
            return
        prompt = request.to_completion(model, self.gateway.model(model).image_token) if request.raw else request.to_chat(model)
        await self._answer(request, model, prompt, stopwatch, response)

    async def show(self, body: JsonBody, response: ResponseWriter) -> None:
        request = ShowBody.read(body)
        await response.json(200, self.models.show(self.models.find(request.model or request.name)))

    async def pull(self, body: JsonBody, response: ResponseWriter) -> None:
        request = PullBody.read(body)
        self.models.find(request.model or request.name)
        success = {"status": "success"}
        if request.stream is False:
            await response.json(200, success)
        else:
            lines = b"".join(orjson.dumps(line) + b"\n" for line in ({"status": "pulling manifest"}, success))
            await response.body(200, lines, NDJSON.encode())

    async def _answer(
        self,
        request: ChatBody | GenerateBody,
        model: str,
        prompt: ChatRequest | CompletionRequest,
        stopwatch: Stopwatch,
        response: ResponseWriter,
    ) -> None:
        """Answer a request. The engine always streams, because a whole answer also says when its first token has come."""
        async with self.gateway.open(prompt) as deltas:
            renderer = AnswerRenderer(request.model or model, prompt, deltas, stopwatch, chat=isinstance(request, ChatBody))
            if deltas.tools_ignored:
                response.add_header(b"x-llava-tools", b"ignored")
            if request.streams:
                async with response.stream(NDJSON.encode(), self.gateway.settings.keep_alive, SILENCE, renderer.render_end):
                    await response.deltas(deltas, renderer.render_delta)
                return
            await deltas.collect(renderer.add)
            answer = renderer.render_whole()
        # The response is written after the block, when the key's usage is recorded: its headers have what is left of the key's limits.
        with self.gateway.answer_memory.waiting([answer]):
            await response.body(200, answer, JSON)


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error: as the response, or as the last line of a stream that has started. Clients show the field `error`, a text."""
    body = orjson.dumps({"error": error.message_with_param})
    if response.started:
        await response.end(body + b"\n")
    else:
        await response.body(error.status, body, JSON, retry_after(error))


async def _is_running(request: Request) -> Response:
    return PlainTextResponse("Ollama is running", headers={"vary": "accept"})


def _getter(value: Callable[[], dict[str, Any]]) -> Callable[[Request], Any]:
    """Return a handler that answers with the JSON of `value()`."""

    async def handle(request: Request) -> Response:
        return json_response(value())

    return handle
