"""Reading a request's body: bounded while it arrives, in bytes and in time, alone and together with all others. What it takes once it is
parsed is reserved before, and given back as far as it was not needed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from llava_gateway import metrics
from llava_gateway.call import timed
from llava_gateway.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, TooManyRequests, UnsupportedMediaType
from llava_gateway.settings import Settings
from llava_gateway.web.json import JsonText
from llava_gateway.web.sizes import held_size

T = TypeVar("T", bound=BaseModel)

JSON_TYPES = ("application/json", "text/json", "")
_LARGE = 1 << 20
"""Bytes up to which an estimate of a parsed body is kept as it is: to measure what is held would cost more than it gives back."""


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
    async def json(self, scope: Scope, receive: Receive) -> AsyncIterator["JsonBody"]:
        """The body, whose memory is counted as long as the block runs. GatewayError for media types other than JSON and bodies that are too
        large or too slow; ClientLeft if the rest of it will not come."""
        headers = Headers(scope=scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in JSON_TYPES and not media_type.endswith("+json"):
            raise UnsupportedMediaType(f"The body must be application/json, not {media_type}.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")
        with self._share() as share:
            with timed("body"):
                body = JsonBody(await self._read_in_time(headers, receive, share), share)
            yield body

    @contextmanager
    def message(self, message: bytes) -> Iterator["JsonBody"]:
        """As `json`, of what a WebSocket has brought."""
        with self._share() as share:
            share.grow_to(len(message))
            body = JsonBody(message, share)
            del message
            yield body

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

    async def _read_in_time(self, headers: Headers, receive: Receive, share: "_Share") -> bytes | bytearray:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._read(headers, receive, share)
        except TimeoutError:
            raise BodyTooSlow(f"The body was not whole after {self.timeout:g} s.") from None

    async def _read(self, headers: Headers, receive: Receive, share: "_Share") -> bytes | bytearray:
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            share.check(int(declared))
        body, more = bytearray(), True  # grows in place, where joined chunks would be held twice
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk, more = message.get("body", b""), message.get("more_body", False)
            share.grow_to(len(body) + len(chunk))
            if not body and not more:
                return cast(bytes, chunk)
            body += chunk
        return body


class JsonBody:
    """A request's body and its reservation. It is parsed once, and gone then, except for pictures that stand in it."""

    def __init__(self, body: bytes | bytearray, share: "_Share") -> None:
        self._body: bytes | bytearray | None = body
        self._share = share

    def parse(self, keep: Callable[[dict[str, Any]], T], *, max_text: int | None) -> T:
        """What `keep` makes of the JSON object, which is dropped. The memory for parsing is reserved first, and more than `held_size` of
        the result is given back. `max_text`: as for `JsonText`. Raises GatewayError."""
        body, self._body = self._body, None
        assert body is not None
        size, text = len(body), JsonText(body, max_text=max_text)
        del body
        reserved = _with_pictures(size, text.picture_size) + text.parsed_size
        self._share.reserve(reserved)
        kept = keep(_object(text))
        if reserved > _LARGE:
            held, pictures = held_size(kept)
            self._share.shrink_to((_with_pictures(size, pictures) if pictures else 0) + held)
        elif not text.picture_size:
            self._share.shrink_to(text.parsed_size)
        return kept


def _with_pictures(body: int, pictures: int) -> int:
    """Bytes of a body and of the pictures in it: they are decoded while it is held."""
    return body + pictures * 3 // 4


def _object(text: JsonText) -> dict[str, Any]:
    value = text.parse()
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
        """The body has so many bytes. Raises BodyTooLarge, or TooManyRequests if it is the others that leave no room."""
        self.check(size)
        self.reserve(size)

    def reserve(self, size: int) -> None:
        """So many bytes, whatever they are for. Raises as `grow_to`."""
        if size > self._bodies.max_together:
            raise BodyTooLarge(f"The body takes more than {self._bodies.max_together >> 20} MiB of memory once it is parsed.")
        more = max(size - self._bytes, 0)
        if self._bodies.bytes + more > self._bodies.max_together:
            raise TooManyRequests("The server is busy with large requests. Try again later.", code="bodies_full", retry_after=1)
        self._bodies.bytes += more
        self._bytes += more

    def shrink_to(self, size: int) -> None:
        less = max(self._bytes - size, 0)
        self._bodies.bytes -= less
        self._bytes -= less

    def release(self) -> None:
        self.shrink_to(0)
