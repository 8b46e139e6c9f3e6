"""Endpoints for operators.

`/health` answers while the process runs. `/ready` answers 200 if an engine has answered recently and admission is open. `/metrics` is the
page that Prometheus reads.
"""

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway.api.base import json_response
from llava_gateway.serving.gateway import Gateway

PROBES = ("/health", "/ready")
"""Paths that an orchestrator calls. They need no API key."""


def routes(gateway: Gateway, exposition: Callable[[], Awaitable[bytes]]) -> list[BaseRoute]:
    """Return the routes. `exposition`: returns the page that Prometheus reads."""

    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(request: Request) -> Response:
        gateway.check_ready()
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
