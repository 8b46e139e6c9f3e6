"""Keys, asked for before anything else: every path, known or not, but those that are exempt by their exact name. Pure ASGI middleware."""

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


class AuthMiddleware:
    def __init__(
        self, app: ASGIApp, keys: Keys, limits: RateLimits, exempt: Collection[str], find_error_renderer: FindErrorRenderer
    ) -> None:
        """`exempt`: paths that need no key."""
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
        if scope["type"] == "websocket":  # each message is a request, which is let in by itself
            try:
                self._key(secret)
            except GatewayError as error:
                await send({"type": "websocket.close", "code": 1008, "reason": error.code or ""})
            else:
                await self.app({**scope, "admit": partial(self._admitted, secret)}, receive, send)
            return
        async with AsyncExitStack() as stack:
            try:
                lease = await stack.enter_async_context(self._admitted(secret))
            except GatewayError as error:
                await self._refuse(error, scope, send)
                return

            async def limited(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *lease.headers()]
                await send(message)

            await self.app(scope, receive, limited)

    @asynccontextmanager
    async def _admitted(self, secret: str) -> AsyncIterator[KeyLease]:
        """One request of the current call, by whom it is. Raises GatewayError."""
        async with self.limits.lease(self._key(secret)) as lease:
            current_context().key_name = lease.key.name
            yield lease

    def _key(self, secret: str) -> Key:
        key = self.keys.find(secret)
        if key is None:
            raise Unauthorized("This server wants a key that it knows, as `Authorization: Bearer KEY` or `key: KEY`.")
        return key

    async def _refuse(self, error: GatewayError, scope: Scope, send: Send) -> None:
        current_context().code = error.code
        headers = list(error.headers) if isinstance(error, RateLimited) else []
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        await self.find_error_renderer(scope)(error, ResponseWriter(send, headers=headers))


def _secret(scope: Scope) -> str:
    """The key that came with the request; empty if there is none."""
    headers = Headers(scope=scope)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    given = credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else headers.get("key", "")
    return given.encode("latin-1").decode(errors="replace")  # clients that have a key beyond ASCII send it as UTF-8
