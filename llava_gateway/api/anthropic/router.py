"""The routes of Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`."""

from typing import TypeVar

import orjson
from starlette.routing import Route

from llava_gateway.api.anthropic.operations import DESCRIPTION, PREFIX
from llava_gateway.api.anthropic.request import CountTokensRequest, CreateMessageRequest
from llava_gateway.api.anthropic.response import PING, MessageEventRenderer, collect_message
from llava_gateway.api.base import Api, error_headers
from llava_gateway.errors import ContextLengthExceeded, GatewayError
from llava_gateway.http.endpoints import Handle, JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import JSON, Header, ResponseWriter
from llava_gateway.observability.context import current_context
from llava_gateway.serving.gateway import Gateway

EVENTS = b"text/event-stream; charset=utf-8"
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's types of errors by status. Other client errors are `invalid_request_error`, and other server errors `api_error`."""
Body = TypeVar("Body", bound=CountTokensRequest)


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create Anthropic's Messages API."""
    handlers = Anthropic(gateway)

    def post(path: str, handle: Handle) -> Route:
        return Route(path, JsonEndpoint(handle, render_error, gateway.admission, body_reader), methods=["POST"])

    routes = [post(PREFIX, handlers.messages), post(f"{PREFIX}/count_tokens", handlers.count_tokens)]
    return Api([*routes], render_error, description=DESCRIPTION, prefix=PREFIX)


class Anthropic:
    """The handlers of the endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def messages(self, body: JsonBody, response: ResponseWriter) -> None:
        request = self._with_model(CreateMessageRequest.read(body))
        chat = request.to_chat()
        async with self.gateway.open(chat) as deltas:
            response.add_header(*_request_id())
            if deltas.tools_ignored:
                response.add_header(b"x-llava-tools", b"ignored")
            if chat.stream:
                renderer = MessageEventRenderer(deltas, request.model, chat.sampling.stop)
                async with response.stream(EVENTS, self.gateway.settings.keep_alive, PING, renderer.render_end):
                    await response.deltas(deltas, renderer.render_delta)
                return
            message = await collect_message(deltas, request.model, chat.sampling.stop)
        # The response is written after the block, when the key's usage is recorded: its headers have what is left of the key's limits.
        with self.gateway.answer_memory.waiting(message):
            await response.parts(200, message, JSON)

    async def count_tokens(self, body: JsonBody, response: ResponseWriter) -> None:
        request = self._with_model(CountTokensRequest.read(body))
        chat = request.to_prompt()
        self.gateway.model(chat.model)
        tokens, *_ = await self.gateway.tokenize(chat)
        await response.json(200, {"input_tokens": len(tokens)}, (_request_id(),))

    def _with_model(self, request: Body) -> Body:
        """Return the request with the name of its model: that of the only model if the request names none. Raises GatewayError."""
        return request if request.model else request.model_copy(update={"model": self.gateway.models.only_name()})


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error in Anthropic's shape: as the response, or as the last event of a stream that has started."""
    body = orjson.dumps(
        {
            "type": "error",
            "error": {"type": _error_type(error), "message": _error_message(error)},
            "request_id": current_context().id,
        }
    )
    if response.started:
        await response.end(b"event: error\ndata: " + body + b"\n\n")
    else:
        await response.body(error.status, body, JSON, (*error_headers(error), _request_id()))


def _error_type(error: GatewayError) -> str:
    return ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")


def _error_message(error: GatewayError) -> str:
    """Return the message, with Anthropic's words for a prompt that does not fit, by which clients such as LiteLLM recognise the error."""
    message = error.message_with_param
    return f"prompt is too long: {message}" if isinstance(error, ContextLengthExceeded) else message


def _request_id() -> Header:
    """Return the header that Anthropic's SDKs read the request's id from."""
    return b"request-id", current_context().id.encode()
