"""The routes `/openapi.json` and `/docs`, which describe the APIs that this server serves."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from llava_gateway.api.base import Api, json_response
from llava_gateway.api.docs.openapi import openapi
from llava_gateway.api.docs.page import docs_page
from llava_gateway.api.operation import OBJECT, ApiDescription, Operation
from llava_gateway.http.response import ErrorRenderer

DESCRIPTION = ApiDescription(
    "Documentation",
    "The description of the APIs that this server serves.",
    (
        Operation("GET", "/openapi.json", "Describe every operation, for programs", answer=OBJECT),
        Operation("GET", "/docs", "Describe every operation, for people", other_answers={"text/html": "A page without scripts"}),
    ),
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def create_api(apis: Sequence[Api], render_error: ErrorRenderer, *, with_keys: bool) -> Api:
    """Create the API that describes `apis` and itself. `with_keys`: whether paths need an API key, unless their API says otherwise."""
    handlers = DocsHandlers(apis, with_keys=with_keys)
    routes = [Route("/openapi.json", handlers.openapi, methods=["GET"]), Route("/docs", handlers.docs, methods=["GET"])]
    return Api([*routes], render_error, description=DESCRIPTION)


class DocsHandlers:
    """The handlers of the endpoints. The document is composed for the first request."""

    def __init__(self, apis: Sequence[Api], *, with_keys: bool) -> None:
        self._descriptions = [*(api.description for api in apis if api.description), DESCRIPTION]
        self._public = {path for api in apis for path in api.public}
        self._with_keys = with_keys

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi(self._descriptions, self._public, with_keys=self._with_keys)

    async def openapi(self, request: Request) -> Response:
        return json_response(self._document)

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(docs_page(self._document), headers={"content-security-policy": POLICY})
