"""The OpenAI door: /v1/chat/completions, /v1/completions and /v1/models in OpenAI's shapes, /tokenize and /version in vLLM's."""

from contextlib import ExitStack
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from llava_gateway import __version__
from llava_gateway.api.base import Api
from llava_gateway.api.openai.openapi import docs_page, openapi
from llava_gateway.api.openai.protocol import ChatCompletionRequest, TextCompletionRequest, detokenize, to_chat, to_completions, tokenize
from llava_gateway.api.openai.streaming import (
    DONE,
    ChunkRenderer,
    TextChunkRenderer,
    completion,
    error_body,
    error_headers,
    text_choices,
    text_completion,
)
from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import GatewayError
from llava_gateway.http.endpoints import Handle, JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import JSON, Parts, ResponseWriter
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import Usage


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    handlers = OpenAI(gateway)
    return Api(
        [
            *_api("/v1", handlers, body_reader),
            _post("/tokenize", handlers.tokenize, gateway, body_reader),
            _post("/detokenize", handlers.detokenize, gateway, body_reader),
            Route("/version", handlers.version, methods=["GET"]),
            Route("/openapi.json", handlers.openapi, methods=["GET"]),
            Route("/docs", handlers.docs, methods=["GET"]),
        ],
        render_error,
    )


def create_deepinfra_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """The same API where DeepInfra has it."""
    return Api(_api("/v1/openai", OpenAI(gateway), body_reader), render_error)


def _api(prefix: str, handlers: "OpenAI", body_reader: RequestBodyReader) -> list[BaseRoute]:
    return [
        _post(f"{prefix}/chat/completions", handlers.chat_completions, handlers.gateway, body_reader),
        _post(f"{prefix}/completions", handlers.completions, handlers.gateway, body_reader),
        Route(f"{prefix}/models", handlers.models, methods=["GET"]),
        Route(f"{prefix}/models/{{model:path}}", handlers.model, methods=["GET"]),
    ]


def _post(path: str, handle: Handle, gateway: Gateway, body_reader: RequestBodyReader) -> Route:
    return Route(path, JsonEndpoint(handle, render_error, gateway.admission, body_reader), methods=["POST"])


class OpenAI:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keep_alive = gateway.settings.keep_alive

    async def chat_completions(self, body: JsonBody, response: ResponseWriter) -> None:
        request = ChatCompletionRequest.read(body)
        async with self.gateway.open(to_chat(request)) as answer:
            if request.stream:
                await self._stream_chat(request, answer, response)
                return
            whole = await completion(answer, request.model, logprobs=bool(request.logprobs))
        with self.gateway.answer_memory.waiting(whole):
            await response.parts(200, whole, JSON)  # the key's limits, which its headers tell, are settled by now

    async def _stream_chat(self, request: ChatCompletionRequest, answer: DeltaStream, response: ResponseWriter) -> None:
        chunks = ChunkRenderer(request.model, answer.usage, request.stream_options, choices=request.n or 1)
        async with response.events(self.keep_alive, chunks.end):
            await response.deltas(answer, chunks.push)

    async def completions(self, body: JsonBody, response: ResponseWriter) -> None:
        request = TextCompletionRequest.read(body)
        prompts = to_completions(request)
        if request.stream:
            async with self.gateway.open(prompts[0]) as answer:
                await self._stream_text(request, answer, response)
            return
        usage = Usage()

        async def choices_of(prepared: PreparedRequest) -> list[Parts]:
            async with self.gateway.open_prepared(prepared) as answer:
                choices = await text_choices(answer, logprobs=request.logprobs is not None)
                usage.add(answer.usage)
            for choice in choices:
                stack.enter_context(self.gateway.answer_memory.waiting(choice))
            return choices

        prepared = await self.gateway.prepare(*prompts)
        with ExitStack() as stack:
            of_prompts = await gather_limited(choices_of, prepared, self.gateway.settings.max_running)
            choices = [choice for of_prompt in of_prompts for choice in of_prompt]
            await response.parts(200, text_completion(choices, usage, request.model), JSON)

    async def _stream_text(self, request: TextCompletionRequest, answer: DeltaStream, response: ResponseWriter) -> None:
        chunks = TextChunkRenderer(request.model, answer.usage, request.stream_options)
        async with response.events(self.keep_alive, chunks.end):
            await response.deltas(answer, chunks.push)

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model(name) for name in self.gateway.models.names()]})

    async def model(self, request: Request) -> Response:
        self.gateway.models.check(request.path_params["model"])
        return _json(self._model(request.path_params["model"]))

    def _model(self, name: str) -> dict[str, Any]:
        models = self.gateway.models
        found = {"id": name, "object": "model", "created": models.created(name), "owned_by": "llava-gateway"}
        return found | {"parent": parent} if (parent := models.parent(name)) else found

    async def tokenize(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, await tokenize(self.gateway, body))

    async def detokenize(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, detokenize(self.gateway, body))

    async def version(self, request: Request) -> Response:
        return _json({"version": __version__})

    async def openapi(self, request: Request) -> Response:
        return _json(openapi())

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(docs_page(openapi()), headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """An error as a response, or as the stream's last event if the status line has left."""
    if response.started:
        await response.event(error_body(error))
        await response.end(DONE)
    else:
        await response.body(error.status, error_body(error), b"application/json", error_headers(error))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
