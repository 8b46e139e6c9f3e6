"""The handlers of `/v1/responses`."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llava_gateway.api.openai.paging import Paging
from llava_gateway.api.openai.responses.creation import Creation
from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.openai.responses.store import ResponseStore, dump
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import JsonBody
from llava_gateway.http.response import JSON, ResponseWriter
from llava_gateway.serving.answer_memory import AnswerMemory
from llava_gateway.serving.gateway import Gateway

MAX_SHARE = 4
"""One response may take a quarter of the memory for an API key's responses."""
MAX_LISTED = 100
"""The upper bound of input items in one answer."""


class Responses:
    """The handlers of the endpoints."""

    def __init__(self, gateway: Gateway, with_model: Callable[[CreateResponse], CreateResponse]) -> None:
        """`with_model`: returns a request with the name of its model."""
        self._gateway = gateway
        self._with_model = with_model
        self._store = ResponseStore(gateway.responses, (gateway.settings.responses_mb_per_key << 20) // MAX_SHARE)

    async def create(self, body: JsonBody, response: ResponseWriter) -> None:
        """Answer `POST /v1/responses`. Raises GatewayError."""
        creation = Creation(self._store, self._with_model(CreateResponse.read(body)))
        chat = await creation.prepare(self._store.conversation(body))
        async with self._gateway.open(chat) as deltas:
            if deltas.tools_ignored:
                response.add_header(b"x-llava-tools", b"ignored")
            result = creation.begin(deltas.model)
            if chat.stream:
                finished = b""
                async with response.events(self._gateway.settings.keep_alive, lambda: result.end(finished)):
                    response.render_failure = result.fail
                    await response.frames(result.begin())
                    await response.deltas(deltas, result.output.add)
                    finished = await creation.finish(result, deltas.usage)
                return
            await deltas.collect(result.output.add)
        finished = await creation.finish(result, deltas.usage)
        with self._gateway.answer_memory.waiting([finished]):
            await response.parts(200, [finished], JSON)

    async def retrieve(self, request: Request) -> Response:
        """Answer `GET /v1/responses/{id}`."""
        if request.query_params.get("stream", "").lower() == "true":
            raise InvalidRequest("stream is not supported: only a response in the background can be streamed later.", param="stream")
        return self._json((await self._store.get(request.path_params["id"])).response)

    async def delete(self, request: Request) -> Response:
        """Answer `DELETE /v1/responses/{id}`."""
        await self._store.delete(request.path_params["id"])
        return self._json({"id": request.path_params["id"], "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """Answer `POST /v1/responses/{id}/cancel`: no response can be cancelled, because none runs in the background."""
        await self._store.get(request.path_params["id"])
        raise InvalidRequest("Cannot cancel a synchronous response; close the connection of its request instead.")

    async def input_items(self, request: Request) -> Response:
        """Answer `GET /v1/responses/{id}/input_items`: the response's own input, the newest item first unless `order` is asc."""
        stored = await self._store.get(request.path_params["id"])
        paging = Paging.read(request.query_params, default_limit=20, max_limit=MAX_LISTED)
        items = stored.input if paging.oldest_first else stored.input[::-1]
        items = items[paging.start([item["id"] for item in items]) :]
        page = items[: paging.limit]
        first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
        listed = {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(items) > len(page)}
        return self._json(listed)

    def _json(self, value: Any) -> Response:
        return CountedResponse(dump(value), self._gateway.answer_memory)


class CountedResponse(Response):
    """A JSON response whose memory counts among the answers until it is sent. Raises TooManyRequests while others take the memory."""

    def __init__(self, body: bytes, answer_memory: AnswerMemory) -> None:
        super().__init__(body, media_type="application/json")
        self._answer_memory = answer_memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer_memory.reserved(len(self.body)):
            await super().__call__(scope, receive, send)
