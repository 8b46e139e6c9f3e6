"""For operators: /health (the process lives), /ready (the engine has answered lately, and admission is open), /metrics."""

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway import metrics
from llava_gateway.gateway import Gateway


def routes(gateway: Gateway) -> list[BaseRoute]:
    async def health(request: Request) -> Response:
        return _status("ok")

    async def ready(request: Request) -> Response:
        gateway.check_ready()
        return _status("ready")

    async def prometheus(request: Request) -> Response:
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", prometheus)]


def _status(status: str) -> Response:
    return Response(orjson.dumps({"status": status}), media_type="application/json")
