"""Reading a request's body: bounded while it arrives, in bytes and in time, alone and together with all others. What it takes once it is
parsed is reserved before, and given back as far as it was not needed."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from llava_gateway.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, TooManyRequests, UnsupportedMediaType
from llava_gateway.http.body_size import held_size, parsed_size
from llava_gateway.observability import metrics
from llava_gateway.observability.context import timed
from llava_gateway.settings import Settings
from llava_gateway.types import BodySlice

_HEAD = re.compile(rb"(?:data:[ -~]{0,200}?,)?[A-Za-z0-9+/_%-]{16}")
_COLON = re.compile(rb"\s*:")
_BETWEEN = re.compile(rb"\s*[,:\]}]")
"""How the text after a string's closing quote begins."""
LONG = 1 << 18
"""Bytes from which base64, and a `data:` URI, is left in place. No text of a prompt may be as long."""
MAX_TEXT = 4 << 20
"""Bytes of a string that is no picture. No model's context has room for as much."""


class JsonText:
    """A JSON text, looked through but not parsed yet."""

    def __init__(self, body: bytes | bytearray, *, max_text: int | None = MAX_TEXT) -> None:
        """`max_text`: bytes of the longest string that is no picture; None: strings may be as long as the body. InvalidRequest for longer
        strings, and for too many values."""
        self._pieces, self._images = _cut(body, max_text)
        self.parsed_size = parsed_size(self._pieces)
        """Most bytes that it takes once it is parsed, without the pictures that are left in place."""
        self.image_size = sum(len(image.ascii) for image in self._images)
        """Bytes of these."""

    def parse(self) -> Any:
        """The value; strings that are long base64 or `data:` URIs are `InPlace`. InvalidRequest if this is not JSON."""
        try:
            if not self._images:
                return orjson.loads(self._pieces[0])
            names = [secrets.token_hex(16) for _ in self._images]
            text = b"".join(part for piece, name in zip(self._pieces, [*names, ""], strict=True) for part in (piece, name.encode()))
            return _with(dict(zip(names, self._images, strict=True)), orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def loads(body: bytes | bytearray) -> Any:
    """The JSON text's value. InvalidRequest."""
    return JsonText(body).parse()


def _cut(body: bytes | bytearray, max_text: int | None) -> tuple[list[memoryview], list[BodySlice]]:
    """What is around the long strings of base64, and these. Quotes stay with what is around, so that what was not JSON does not become
    it. Looks between two quotes around every LONG / 2 bytes: what is LONG cannot slip through, and each byte is looked at twice at most."""
    view = memoryview(body)
    pieces: list[memoryview] = []
    found: list[BodySlice] = []
    done = last = 0
    while (at := last + LONG // 2) < len(body) and (end := body.find(b'"', at)) >= 0:
        start = body.rfind(b'"', last, at) + 1
        if start and end - start >= LONG:
            if _is_image(body, start, end):
                pieces.append(view[done:start])
                found.append(BodySlice(view[start:end]))
                done = end
            elif max_text is not None and end - start > max_text and _is_text(body, start, end):
                raise InvalidRequest(f"The body has a text of more than {max_text} bytes, which is longer than any prompt.")
        last = end
    pieces.append(view[done:])
    return pieces, found


def _is_image(body: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a whole string that begins and ends here, if this is JSON, looks like base64, and is no key. What follows a string's closing
    quote never does, nor does what an escape precedes or is within."""
    escaped = body[start - 2 : start - 1] == b"\\" or body.find(b"\\", start, end) >= 0
    return bool(_HEAD.match(body, start, end)) and not escaped and not _COLON.match(body, end + 1)


def _is_text(body: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a string begins here, if this is JSON, that is no picture in base64, not even one with white space in escapes."""
    return not (_BETWEEN.match(body, start, end) or _HEAD.match(body, start, end))


def _with(found: dict[str, BodySlice], document: Any) -> Any:
    """The document with what was cut out in the places of its names. (A loop: documents may be nested more deeply than Python calls.)"""
    root = [document]
    unseen: list[Any] = [root]
    while unseen:
        container = unseen.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str):
                if value in found:
                    container[key] = found[value]
            elif isinstance(value, dict | list):
                unseen.append(value)
    return root[0]


T = TypeVar("T", bound=BaseModel)

JSON_TYPES = ("application/json", "text/json", "")
_LARGE = 1 << 20
"""Bytes up to which an estimate of a parsed body is kept as it is: to measure what is held would cost more than it gives back."""


class ClientDisconnected(Exception):
    """The client closed the connection before its answer was whole."""


class RequestBodyReader:
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

    def reservation(self) -> "BodyReservation":
        """For the bytes of a message that is on its way. Its holder releases it."""
        return BodyReservation(self)

    @contextmanager
    def _share(self) -> Iterator["BodyReservation"]:
        share = BodyReservation(self)
        try:
            yield share
        finally:
            share.release()

    async def _read_in_time(self, headers: Headers, receive: Receive, share: "BodyReservation") -> bytes | bytearray:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._read(headers, receive, share)
        except TimeoutError:
            raise BodyTooSlow(f"The body was not whole after {self.timeout:g} s.") from None

    async def _read(self, headers: Headers, receive: Receive, share: "BodyReservation") -> bytes | bytearray:
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            share.check(int(declared))
        body, more = bytearray(), True  # grows in place, where joined chunks would be held twice
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk, more = message.get("body", b""), message.get("more_body", False)
            share.grow_to(len(body) + len(chunk))
            if not body and not more:
                return cast(bytes, chunk)
            body += chunk
        return body


class JsonBody:
    """A request's body and its reservation. It is parsed once, and gone then, except for pictures that stand in it."""

    def __init__(self, body: bytes | bytearray, share: "BodyReservation") -> None:
        self._body: bytes | bytearray | None = body
        self._share = share

    def parse(self, keep: Callable[[dict[str, Any]], T], *, max_text: int | None) -> T:
        """What `keep` makes of the JSON object, which is dropped. The memory for parsing is reserved first, and more than `held_size` of
        the result is given back. `max_text`: as for `JsonText`. Raises GatewayError."""
        body, self._body = self._body, None
        assert body is not None
        size, text = len(body), JsonText(body, max_text=max_text)
        del body
        reserved = _with_images(size, text.image_size) + text.parsed_size
        self._share.reserve(reserved)
        kept = keep(_object(text))
        if reserved > _LARGE:
            held, images = held_size(kept)
            self._share.shrink_to((_with_images(size, images) if images else 0) + held)
        elif not text.image_size:
            self._share.shrink_to(text.parsed_size)
        return kept


def _with_images(body: int, images: int) -> int:
    """Bytes of a body and of the pictures in it: they are decoded while it is held."""
    return body + images * 3 // 4


def _object(text: JsonText) -> dict[str, Any]:
    value = text.parse()
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


class BodyReservation:
    """One body's part of all of them."""

    def __init__(self, body_reader: RequestBodyReader) -> None:
        self._body_reader = body_reader
        self._bytes = 0

    def check(self, size: int) -> None:
        """Raises BodyTooLarge."""
        if size > self._body_reader.max_body:
            raise BodyTooLarge(f"The body is larger than {self._body_reader.max_body >> 20} MiB.")

    def grow_to(self, size: int) -> None:
        """The body has so many bytes. Raises BodyTooLarge, or TooManyRequests if it is the others that leave no room."""
        self.check(size)
        self.reserve(size)

    def reserve(self, size: int) -> None:
        """So many bytes, whatever they are for. Raises as `grow_to`."""
        if size > self._body_reader.max_together:
            raise BodyTooLarge(f"The body takes more than {self._body_reader.max_together >> 20} MiB of memory once it is parsed.")
        more = max(size - self._bytes, 0)
        if self._body_reader.bytes + more > self._body_reader.max_together:
            raise TooManyRequests("The server is busy with large requests. Try again later.", code="bodies_full", retry_after=1)
        self._body_reader.bytes += more
        self._bytes += more

    def shrink_to(self, size: int) -> None:
        less = max(self._bytes - size, 0)
        self._body_reader.bytes -= less
        self._bytes -= less

    def release(self) -> None:
        self.shrink_to(0)
