"""Middleware that requires an API key for every path, known or not, except for the exempt paths. It runs before the app sees a request."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_gateway.auth.api_keys import Key, Keys
from llava_gateway.auth.rate_limits import KeyLease, RateLimited, RateLimits
from llava_gateway.errors import GatewayError, Unauthorized
from llava_gateway.http.response import FindErrorRenderer, ResponseWriter
from llava_gateway.observability.context import current_context

KEY_HEADERS = ("key", "x-api-key", "api-key")
"""Headers that may have an API key: SambaStudio's, Anthropic's and Azure's."""


class AuthMiddleware:
    """Pure ASGI middleware. It leases the key for each HTTP request, and adds the `x-ratelimit-*` headers to its response.

    A WebSocket's endpoint leases the key for each message, with the function `admit` in the scope.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, limits: RateLimits, exempt: Collection[str], find_error_renderer: FindErrorRenderer
    ) -> None:
        """`exempt`: the exact paths that need no key."""
        self.app = app
        self.keys = keys
        self.limits = limits
        self.exempt = frozenset(exempt)
        self.find_error_renderer = find_error_renderer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"].removeprefix(scope.get("root_path", "")) in self.exempt:
            await self.app(scope, receive, send)
            return
        secret = _secret(scope)
        if scope["type"] == "websocket":  # each message is a request, which is admitted on its own
            try:
                self._key(secret)
            except GatewayError as error:
                await send({"type": "websocket.close", "code": 1008, "reason": error.code or ""})
            else:
                await self.app({**scope, "admit": partial(self._lease, secret)}, receive, send)
            return
        async with AsyncExitStack() as stack:
            try:
                lease = await stack.enter_async_context(self._lease(secret))
            except GatewayError as error:
                await self._refuse(error, scope, send)
                return

            async def send_with_limits(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *lease.headers()]
                await send(message)

            await self.app(scope, receive, send_with_limits)

    @asynccontextmanager
    async def _lease(self, secret: str) -> AsyncIterator[KeyLease]:
        """Count one request of the key within the block, and put the key's name into the request's context. Raises GatewayError."""
        async with self.limits.lease(self._key(secret)) as lease:
            current_context().key_name = lease.key.name
            yield lease

    def _key(self, secret: str) -> Key:
        """Return the key of a secret. Raises Unauthorized."""
        key = self.keys.find(secret)
        if key is None:
            raise Unauthorized("This server wants a key that it knows, as `Authorization: Bearer KEY`, `x-api-key: KEY` or `key: KEY`.")
        return key

    async def _refuse(self, error: GatewayError, scope: Scope, send: Send) -> None:
        current_context().code = error.code
        headers = list(error.headers) if isinstance(error, RateLimited) else []
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        await self.find_error_renderer(scope)(error, ResponseWriter(send, headers=headers))


def _secret(scope: Scope) -> str:
    """Return the secret of `Authorization: Bearer SECRET`, or of the first header of KEY_HEADERS; empty if there is none."""
    headers = Headers(scope=scope)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    secret = credentials.strip() if scheme.lower() == "bearer" else ""
    if not secret:
        secret = next((value for name in KEY_HEADERS if (value := headers.get(name))), "")
    return secret.encode("latin-1").decode(errors="replace")  # clients send characters beyond ASCII as UTF-8
