"""Endpoints for operators.

`/health` answers while the process runs. `/ready` answers 200 if an engine has answered recently and admission is open. `/metrics` is the
page that Prometheus reads.
"""

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llava_gateway.api.base import Api, json_response
from llava_gateway.api.operation import ApiDescription, Operation, object_schema
from llava_gateway.http.response import ErrorRenderer
from llava_gateway.serving.gateway import Gateway

PROBES = ("/health", "/ready")
"""Paths that an orchestrator calls. They need no API key."""
DESCRIPTION = ApiDescription(
    "Operation of the server",
    "Probes of an orchestrator, and metrics.",
    (
        Operation("GET", "/health", "Answer while the process runs", answer=object_schema(status={"const": "ok"})),
        Operation(
            "GET",
            "/ready",
            "Answer if a new request would be accepted",
            answer=object_schema(status={"const": "ready"}),
            errors={503: "The model is loading, the engine is restarting, or the server is stopping"},
        ),
        Operation("GET", "/metrics", "Return the metrics", other_answers={"text/plain": "Prometheus' text format"}),
    ),
)


def create_api(gateway: Gateway, exposition: Callable[[], Awaitable[bytes]], render_error: ErrorRenderer) -> Api:
    """Create the API. `exposition`: returns the page that Prometheus reads."""

    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(request: Request) -> Response:
        gateway.check_ready()
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
    return Api([*routes], render_error, public=PROBES, description=DESCRIPTION)
