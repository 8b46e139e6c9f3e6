"""An API as the app sees it: its routes, its rendering of errors, and its description."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from llava_gateway.api.operation import ApiDescription
from llava_gateway.errors import GatewayError
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, FindErrorRenderer, Header, ResponseWriter, retry_after
from llava_gateway.observability.context import current_context
from llava_gateway.serving.gateway import Gateway


@dataclass(frozen=True)
class Api:
    """One API that clients use."""

    routes: list[BaseRoute]
    render_error: ErrorRenderer
    public: Sequence[str] = ()
    """Paths that need no API key."""
    description: ApiDescription | None = None
    """The part of the OpenAPI document. None: the paths are for browsers, and are not in the document."""
    prefix: str | None = None
    """Every path that begins with this prefix is this API's, even if no route has it. None: only the paths of the routes."""

    def has_path(self, scope: Scope) -> bool:
        """Return whether a request's path is this API's, even if the API does not have the method."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.prefix is not None and f"{path}/".startswith(f"{self.prefix}/"):
            return True
        return any(route.matches(scope)[0] != Match.NONE for route in self.routes)


ApiFactory = Callable[[Gateway, RequestBodyReader], Api]
"""Creates an API in front of a gateway."""


def error_renderer_by_path(apis: Sequence[Api], otherwise: ErrorRenderer) -> FindErrorRenderer:
    """Return a function that finds the error renderer for a request: that of the API that has the path.

    `otherwise`: the error renderer for all other paths.
    """

    def find_error_renderer(scope: Scope) -> ErrorRenderer:
        return next((api.render_error for api in apis if api.has_path(scope)), otherwise)

    return find_error_renderer


@dataclass(frozen=True)
class ErrorResponse:
    """An ASGI app that answers every request with an error."""

    error: GatewayError
    render_error: ErrorRenderer
    headers: Mapping[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        current_context().code = self.error.code or self.error.type
        headers = ((name.encode(), value.encode()) for name, value in self.headers.items())
        await self.render_error(self.error, ResponseWriter(send, headers=headers))


def error_headers(error: GatewayError) -> tuple[Header, ...]:
    """Return the headers that say when to retry.

    The SDKs of OpenAI and Anthropic retry every 429 and 5xx unless `x-should-retry` forbids it.
    """
    if error.retry_after is None and (error.status >= 500 or error.status == 429):
        return ((b"x-should-retry", b"false"),)
    return retry_after(error)


def json_response(value: Any) -> Response:
    """Return a 200 response with `value` as JSON, for a route without a request body."""
    return Response(orjson.dumps(value), media_type="application/json")
