"""The OpenAI door: /v1/chat/completions, /v1/completions and /v1/models in OpenAI's shapes, /tokenize and /version in vLLM's."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from llava_gateway.answer import Answer
from llava_gateway.chat import CompletionRequest, Usage
from llava_gateway.doors.openai.chat_render import ChunkRenderer, completion
from llava_gateway.doors.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.doors.openai.completions_render import TextChunkRenderer, text_choices, text_completion
from llava_gateway.doors.openai.completions_request import TextCompletionRequest, to_completions
from llava_gateway.doors.openai.openapi import openapi
from llava_gateway.doors.openai.page import page
from llava_gateway.doors.openai.render import DONE, error_headers, render_error
from llava_gateway.doors.openai.tokenize import detokenize, tokenize
from llava_gateway.errors import GatewayError
from llava_gateway.gateway import Gateway
from llava_gateway.version import __version__
from llava_gateway.web.body import Bodies
from llava_gateway.web.endpoint import Handle, JsonEndpoint
from llava_gateway.web.reply import Reply

T = TypeVar("T")


def routes(gateway: Gateway, bodies: Bodies) -> list[BaseRoute]:
    """The door's paths."""
    door = OpenAI(gateway)

    def post(path: str, handle: Handle) -> Route:
        return Route(path, JsonEndpoint(handle, fail, gateway.admission, bodies), methods=["POST"])

    return [
        post("/v1/chat/completions", door.chat_completions),
        post("/v1/completions", door.completions),
        Route("/v1/models", door.models, methods=["GET"]),
        Route("/v1/models/{model:path}", door.model, methods=["GET"]),
        post("/tokenize", door.tokenize),
        post("/detokenize", door.detokenize),
        Route("/version", door.version, methods=["GET"]),
        Route("/openapi.json", door.openapi, methods=["GET"]),
        Route("/docs", door.docs, methods=["GET"]),
    ]


class OpenAI:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keep_alive = gateway.settings.keep_alive

    async def chat_completions(self, body: dict[str, Any], reply: Reply) -> None:
        request = ChatCompletionRequest.parse(body)
        async with self.gateway.open(to_chat(request)) as answer:
            if request.stream:
                await self._stream_chat(request, answer, reply)
            else:
                await reply.json(200, await completion(answer, request.model, logprobs=bool(request.logprobs)))

    async def _stream_chat(self, request: ChatCompletionRequest, answer: Answer, reply: Reply) -> None:
        chunks = ChunkRenderer(request.model, answer.usage, request.stream_options, choices=request.n or 1)
        async with reply.events(self.keep_alive):
            await reply.frames(chunks.begin())
            async for delta in answer:
                if frames := chunks.push(delta):
                    await reply.frames(frames)
            await reply.frames(chunks.end())

    async def completions(self, body: dict[str, Any], reply: Reply) -> None:
        request = TextCompletionRequest.parse(body)
        prompts = to_completions(request)
        if request.stream:
            async with self.gateway.open(prompts[0]) as answer:
                await self._stream_text(request, answer, reply)
            return
        for prompt in prompts:
            self.gateway.check_fits(prompt)  # what will be refused is refused before the others cost anything
        usage = Usage()
        tasks = [self._choices(prompt, index * (request.n or 1), usage) for index, prompt in enumerate(prompts)]
        choices = [choice for choices in await _all(tasks) for choice in choices]
        await reply.json(200, text_completion(choices, usage, request.model))

    async def _choices(self, prompt: CompletionRequest, first_index: int, total: Usage) -> list[dict[str, Any]]:
        async with self.gateway.open(prompt) as answer:
            choices = await text_choices(answer, first_index, logprobs=prompt.sampling.logprobs is not None)
            total.add(answer.usage)
            return choices

    async def _stream_text(self, request: TextCompletionRequest, answer: Answer, reply: Reply) -> None:
        chunks = TextChunkRenderer(request.model, answer.usage, request.stream_options)
        async with reply.events(self.keep_alive):
            async for delta in answer:
                if frames := chunks.push(delta):
                    await reply.frames(frames)
            await reply.frames(chunks.end())

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model(name) for name in self.gateway.models()]})

    async def model(self, request: Request) -> Response:
        self.gateway.check_name(request.path_params["model"])
        return _json(self._model(request.path_params["model"]))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.gateway.created, "owned_by": "llava-gateway"}

    async def tokenize(self, body: dict[str, Any], reply: Reply) -> None:
        await reply.json(200, tokenize(self.gateway, body))

    async def detokenize(self, body: dict[str, Any], reply: Reply) -> None:
        await reply.json(200, detokenize(self.gateway, body))

    async def version(self, request: Request) -> Response:
        return _json({"version": __version__})

    async def openapi(self, request: Request) -> Response:
        return _json(openapi())

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(page(openapi()), headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})


async def _all(tasks: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; if one fails, its error, and the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task) for task in tasks]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]


async def fail(error: GatewayError, reply: Reply) -> None:
    """An error as a response, or as the stream's last event if the status line has left."""
    if reply.started:
        await reply.event(render_error(error))
        await reply.frames(DONE)
        await reply.close_events()
    else:
        await reply.body(error.status, render_error(error), b"application/json", error_headers(error))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
