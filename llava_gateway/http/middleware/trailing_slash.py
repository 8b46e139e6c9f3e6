"""Middleware that takes a path with a slash at its end for the path without it.

Some clients join their base URL and the path that way. A redirect would not help: many clients do not follow it, or drop the body.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class TrailingSlashMiddleware:
    """Pure ASGI middleware. The root path stays as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path.endswith("/") and path != scope.get("root_path", "") + "/":
            scope = {**scope, "path": path[:-1]}
        await self.app(scope, receive, send)
