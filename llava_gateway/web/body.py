"""Reading a request's body: bounded while it arrives, in bytes and in time, alone and together with all others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from llava_gateway import metrics
from llava_gateway.call import timed
from llava_gateway.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, TooManyRequests, UnsupportedMediaType
from llava_gateway.settings import Settings
from llava_gateway.web.json import loads

JSON_TYPES = ("application/json", "text/json", "")


class ClientLeft(Exception):
    """The client closed the connection before its answer was whole."""


class Bodies:
    """All bodies that are in memory."""

    def __init__(self, settings: Settings) -> None:
        self.max_body, self.max_together = settings.max_body_mb << 20, settings.max_bodies_mb << 20
        self.timeout = settings.body_timeout
        self.bytes = 0
        metrics.BODY_BYTES.set_function(lambda: self.bytes)

    @asynccontextmanager
    async def json(self, scope: Scope, receive: Receive) -> AsyncIterator[dict[str, Any]]:
        """The JSON object in the body, whose memory is counted as long as the block runs. GatewayError for anything else; ClientLeft if
        the rest of it will not come."""
        headers = Headers(scope=scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in JSON_TYPES and not media_type.endswith("+json"):
            raise UnsupportedMediaType(f"The body must be application/json, not {media_type}.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")
        with self._share() as share:
            with timed("body"):
                value = _object(await self._read_in_time(headers, receive, share))
            yield value

    @contextmanager
    def message(self, message: bytes) -> Iterator[dict[str, Any]]:
        """As `json`, of what a WebSocket has brought."""
        with self._share() as share:
            share.grow_to(len(message))
            yield _object(message)

    def reservation(self) -> "_Share":
        """For the bytes of a message that is on its way. Its holder releases it."""
        return _Share(self)

    @contextmanager
    def _share(self) -> Iterator["_Share"]:
        share = _Share(self)
        try:
            yield share
        finally:
            share.release()

    async def _read_in_time(self, headers: Headers, receive: Receive, share: "_Share") -> bytes:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._read(headers, receive, share)
        except TimeoutError:
            raise BodyTooSlow(f"The body was not whole after {self.timeout:g} s.") from None

    async def _read(self, headers: Headers, receive: Receive, share: "_Share") -> bytes:
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            share.check(int(declared))
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            size += len(chunk)
            share.grow_to(size)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)


def _object(body: bytes) -> dict[str, Any]:
    value = loads(body)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


class _Share:
    """One body's part of all of them."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._bytes = 0

    def check(self, size: int) -> None:
        """Raises BodyTooLarge."""
        if size > self._bodies.max_body:
            raise BodyTooLarge(f"The body is larger than {self._bodies.max_body >> 20} MiB.")

    def grow_to(self, size: int) -> None:
        """Raises BodyTooLarge, or TooManyRequests if it is the others that leave no room."""
        self.check(size)
        more = max(size - self._bytes, 0)
        if self._bodies.bytes + more > self._bodies.max_together:
            raise TooManyRequests("The server is busy with large requests. Try again later.", code="bodies_full", retry_after=1)
        self._bodies.bytes += more
        self._bytes += more

    def release(self) -> None:
        self._bodies.bytes -= self._bytes
        self._bytes = 0
