"""A dictionary of routes, for the paths that have no parameters."""

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send


class ExactRoutes(BaseRoute):
    """Finds a path without parameters in a dictionary, instead of comparing it with one route after the other.

    It stands before the routes themselves, which answer all other requests:

        Starlette(routes=[ExactRoutes(routes), *routes])
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes: dict[tuple[str, str], Route] = {}
        for index, route in enumerate(routes):
            if isinstance(route, Route) and not route.param_convertors:
                for method in route.methods or ():
                    if not any(_answers(earlier, method, route.path) for earlier in routes[:index]):
                        self._routes[method, route.path] = route

    def matches(self, scope: Scope) -> tuple[Match, dict[str, Any]]:
        """Return whether the dictionary has a route for a request, and that route's child scope."""
        if scope["type"] != "http" or scope.get("root_path"):
            return Match.NONE, {}
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            return Match.NONE, {}
        match, child_scope = route.matches(scope)
        return match, {**child_scope, "exact_route": route}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that matches."""
        route: Route = scope.pop("exact_route")
        scope["route"] = route
        await route.handle(scope, receive, send)


def _answers(route: BaseRoute, method: str, path: str) -> bool:
    """Return whether a route would answer a request for a path."""
    return route.matches({"type": "http", "method": method, "path": path, "headers": []})[0] is not Match.NONE
