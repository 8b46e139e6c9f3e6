"""Requests reach the same routes as without the dictionary."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from llava_gateway.http.exact_routes import ExactRoutes


def answer(name: str) -> Any:
    async def endpoint(request: Request) -> JSONResponse:
        route = request.scope["route"]
        return JSONResponse([name, route.path, request.path_params])

    return endpoint


ROUTES = [
    Route("/a", answer("get a"), methods=["GET"]),
    Route("/a", answer("post a"), methods=["POST"]),
    Route("/models/{name}", answer("any model")),
    Route("/models/one", answer("never reached")),
    Route("/b/{name:path}", answer("below b")),
    Route("/c", answer("c")),
]
PATHS = ("/a", "/a/", "/A", "/models/one", "/models/two", "/b/x/y", "/c", "/nothing")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("mounted", [False, True])
def test_request_reaches_the_route_that_starlette_finds(method: str, path: str, mounted: bool) -> None:
    results = []
    for routes in (ROUTES, [ExactRoutes(ROUTES), *ROUTES]):
        app = Starlette(routes=routes)
        client = TestClient(Starlette(routes=[Mount("/under", app)]) if mounted else app)
        response = client.request(method, "/under" * mounted + path, follow_redirects=False)
        results.append((response.status_code, response.content, response.headers))
    assert results[0] == results[1]
