"""Middleware that keeps foreign web pages from using a server without API keys.

Such a server serves every client that reaches its port. The people of this machine may use it, but not the web pages that their browsers
show. A page of another origin can send some requests without a CORS preflight. It can also point its own host name at this machine (DNS
rebinding), and then read the responses, too.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway.errors import Forbidden, GatewayError
from llava_gateway.http.response import FindErrorRenderer, ResponseWriter
from llava_gateway.observability.context import current_context


class OriginMiddleware:
    """Pure ASGI middleware that checks the headers `Host` and `Origin`."""

    def __init__(self, app: ASGIApp, allowed: Collection[str], find_error_renderer: FindErrorRenderer, *, loopback: bool) -> None:
        """`allowed`: the origins whose pages may send requests; `*` is any. `loopback`: whether the Host must name this machine."""
        self.app = app
        self.allowed = frozenset(allowed)
        self.find_error_renderer = find_error_renderer
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(Headers(scope=scope))
            except GatewayError as error:
                current_context().code = error.code
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008, "reason": error.code or ""})
                else:
                    await self.find_error_renderer(scope)(error, ResponseWriter(send))
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.loopback and not _is_here(host):
            raise Forbidden(
                f"The Host {host[:100]!r} is not this machine. To serve under other names, set API keys, or --auth none.",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is None or "*" in self.allowed or origin in self.allowed or (host and origin.partition("://")[2] == host):
            return
        raise Forbidden(f"Pages of {origin[:100]!r} may not use this server: --cors-origins does not list them.", code="origin_not_allowed")


def _is_here(host: str) -> bool:
    """Return whether a Host header names this machine, or is an address. A foreign page cannot have an address as its host name."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
