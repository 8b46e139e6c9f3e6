"""The OpenAI door: /v1/chat/completions and /v1/models. Shapes after OpenAI's own schemas."""

import time
import uuid
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway.chat import Delta, Usage
from llava_gateway.doors.openai_request import parse, to_chat
from llava_gateway.errors import GatewayError, NotFound
from llava_gateway.gateway import Answer, Gateway
from llava_gateway.web.endpoint import JsonEndpoint
from llava_gateway.web.reply import Reply

DONE = b"data: [DONE]\n\n"


def routes(gateway: Gateway, max_body: int) -> list[BaseRoute]:
    """The door's paths. `max_body` in bytes."""
    door = OpenAI(gateway)
    return [
        Route("/v1/chat/completions", JsonEndpoint(door.chat_completions, fail, max_body), methods=["POST"]),
        Route("/v1/models", door.models, methods=["GET"]),
        Route("/v1/models/{model:path}", door.model, methods=["GET"]),
    ]


class OpenAI:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def chat_completions(self, body: dict[str, Any], reply: Reply) -> None:
        request = parse(body)
        async with self.gateway.open(to_chat(request)) as answer:
            if request.stream:
                await stream_chunks(answer, request.model, request.include_usage, reply)
            else:
                await reply.json(200, await completion(answer, request.model))

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self.gateway.model_name:
            raise NotFound(f"There is no model {name!r} here.", param="model", code="model_not_found")
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.gateway.model_name, "object": "model", "created": self.gateway.created, "owned_by": "llava-gateway"}


async def completion(answer: Answer, model: str) -> dict[str, Any]:
    """A `chat.completion`."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    async for delta in answer:
        texts[delta.index] = texts.get(delta.index, "") + delta.text
        reasons[delta.index] = delta.finish_reason
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": texts[index], "refusal": None},
                "logprobs": None,
                "finish_reason": reasons[index],
            }
            for index in sorted(texts)
        ],
        "usage": render_usage(answer.usage),
    }


async def stream_chunks(answer: Answer, model: str, include_usage: bool, reply: Reply) -> None:
    """The answer as `chat.completion.chunk` events: role, deltas, finish for each choice; usage if asked for; [DONE]."""
    chunks = ChunkRenderer(model, include_usage)
    await reply.open_events()
    async for delta in answer:
        if frames := chunks.push(delta):
            await reply.frames(frames)
    await reply.frames(chunks.end(answer.usage) + DONE)
    await reply.close_events()


class ChunkRenderer:
    """Deltas to framed chunks. What does not change from chunk to chunk is rendered once: this runs for every token of every stream."""

    def __init__(self, model: str, include_usage: bool) -> None:
        head = orjson.dumps({"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model})
        self._head = b"data: " + head[:-1]
        self._tail = (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def push(self, delta: Delta) -> bytes:
        """The frames that a delta makes: none, while it holds no whole character."""
        frames = b""
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            frames = self._chunk(delta.index, b'{"role":"assistant","content":""}')
        if delta.text:
            frames += self._chunk(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}")
        if delta.finish_reason is not None:
            frames += self._chunk(delta.index, b"{}", b'"' + delta.finish_reason.encode() + b'"')
        return frames

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return b""
        return self._head + b',"choices":[],"usage":' + orjson.dumps(render_usage(usage)) + b"}\n\n"

    def _chunk(self, index: int, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (
            self._head, index, delta, finish_reason, self._tail,
        )  # fmt: skip


def render_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's `CompletionUsage`; image tokens are counted among the prompt's and named in its details."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
        },
        "completion_tokens_details": {"text_tokens": usage.completion_tokens},
    }


def render_error(error: GatewayError) -> bytes:
    """OpenAI's `ErrorResponse`."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


async def fail(error: GatewayError, reply: Reply) -> None:
    """An error as a response, or as the stream's last event if the status line has left."""
    if reply.started:
        await reply.event(render_error(error))
        await reply.frames(DONE)
        await reply.close_events()
    else:
        await reply.body(error.status, render_error(error), b"application/json", error_headers(error))


def error_headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", str(error.retry_after).encode()),) if error.retry_after is not None else ()


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
