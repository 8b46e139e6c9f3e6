"""The OpenAI door: /v1/chat/completions and /v1/models. Shapes after OpenAI's own schemas."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway.doors.openai.render import DONE, ChunkRenderer, completion, error_headers, render_error
from llava_gateway.doors.openai.request import parse, to_chat
from llava_gateway.errors import GatewayError, NotFound
from llava_gateway.gateway import Answer, Gateway
from llava_gateway.web.endpoint import JsonEndpoint
from llava_gateway.web.reply import Reply


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


async def stream_chunks(answer: Answer, model: str, include_usage: bool, reply: Reply) -> None:
    """The answer as `chat.completion.chunk` events: role, deltas, finish for each choice; usage if asked for; [DONE]."""
    chunks = ChunkRenderer(model, include_usage)
    await reply.open_events()
    async for delta in answer:
        if frames := chunks.push(delta):
            await reply.frames(frames)
    await reply.frames(chunks.end(answer.usage) + DONE)
    await reply.close_events()


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
