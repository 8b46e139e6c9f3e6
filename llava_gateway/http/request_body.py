"""Reading the body of a request, with limits.

The size of each body, the memory of all bodies together and the time of arrival are bounded. The memory for the parsed JSON is reserved
before parsing. The part of the reservation that the parsed request does not need is released afterwards.
"""

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
from llava_gateway.http.body_size import parsed_size, validated_size
from llava_gateway.http.form import Form, form_boundary, parse_form
from llava_gateway.observability import metrics
from llava_gateway.observability.context import timed
from llava_gateway.settings import Settings
from llava_gateway.types import BodySlice

_WHITE = rb"(?: |\\[nrtf]){0,16}"
_IMAGE_START = re.compile(_WHITE + rb"(?:(?i:data:)[ -~]{0,200}?," + _WHITE + rb")?[A-Za-z0-9+/_%-]{16}")
"""How base64 and a `data:` URI begin, with white space as `images.inline` accepts it."""
_COLON = re.compile(rb"\s*:")
_AFTER_STRING = re.compile(rb"\s*[,:\]}]")
"""How the JSON text after a string's closing quote begins."""
LONG = 1 << 18
"""The length in bytes from which a base64 string or `data:` URI becomes a BodySlice. No text of a prompt may be as long."""
_FIRST_LINE = 1024
"""The number of bytes in which wrapped base64 has its first line break: `base64` and MIME write lines of up to 76 characters."""
LINE_BREAK_ADVICE = " Write a line break in a string as \\n, and base64 on one line (`base64 -w0`)."
MAX_TEXT = 4 << 20
"""The upper bound of a string that is not an image, in bytes. No model's context has room for a longer text."""


class JsonText:
    """A JSON text that has been scanned for images and sizes, but not parsed yet."""

    def __init__(self, body: bytes | bytearray, *, max_text: int | None = MAX_TEXT) -> None:
        """Scan `body`.

        `max_text`: the upper bound of a string that is not an image, in bytes. None: no bound but the body's. Raises InvalidRequest for a
        longer string, and for too many values.
        """
        self._pieces, self._images = _cut_out_images(body, max_text)
        self.parsed_size = parsed_size(self._pieces)
        """An upper bound of the memory of the parsed value, in bytes, without the images that stay in the body."""
        self.image_size = sum(len(image.ascii) for image in self._images)
        """The size of the images that stay in the body, in bytes."""

    def parse(self) -> Any:
        """Return the value, with a BodySlice for each long base64 string and `data:` URI. Raises InvalidRequest if this is not JSON."""
        try:
            if not self._images:
                return orjson.loads(self._pieces[0])
            placeholders = [secrets.token_hex(16) for _ in self._images]  # random, so that no client's string is taken for one
            ends = [*placeholders, ""]
            text = b"".join(part for piece, end in zip(self._pieces, ends, strict=True) for part in (piece, end.encode()))
            return _put_back(dict(zip(placeholders, self._images, strict=True)), orjson.loads(text))
        except orjson.JSONDecodeError as error:
            advice = LINE_BREAK_ADVICE if "control character" in str(error) else ""
            raise InvalidRequest(f"The body is not valid JSON: {error}.{advice}") from None


def loads(body: bytes | bytearray) -> Any:
    """Return the value of a JSON text, as `JsonText.parse` does. Raises InvalidRequest."""
    return JsonText(body).parse()


def _cut_out_images(body: bytes | bytearray, max_text: int | None) -> tuple[list[memoryview], list[BodySlice]]:
    """Return the pieces of a body around its long base64 strings, and these strings.

    Quotes stay in the pieces, so that a text that is not JSON does not become JSON. The scan jumps LONG / 2 bytes and looks at the two
    quotes around that position: no string of LONG bytes is missed, and each byte is looked at twice at most.
    """
    view = memoryview(body)
    pieces: list[memoryview] = []
    images: list[BodySlice] = []
    piece_start = last_quote = 0
    while (position := last_quote + LONG // 2) < len(body) and (end := body.find(b'"', position)) >= 0:
        start = body.rfind(b'"', last_quote, position) + 1
        if start and end - start >= LONG:
            if _is_image(body, start, end):
                pieces.append(view[piece_start:start])
                images.append(BodySlice(view[start:end]))
                piece_start = end
            elif max_text is not None and end - start > max_text and _is_text(body, start, end):
                raise InvalidRequest(f"The body has a text of more than {max_text} bytes, which is longer than any prompt.")
        last_quote = end
    pieces.append(view[piece_start:])
    return pieces, images


def _is_image(body: bytes | bytearray, start: int, end: int) -> bool:
    """Return whether the bytes between two quotes are a whole JSON string that looks like base64 and is not a key, if the body is JSON.

    The bytes may also lie between two strings. Such bytes begin with a comma, a colon or a bracket, and never look like base64. A string
    with an escape in it, and one whose opening quote is escaped, is not an image either. Lines of base64 are not an image either, since a
    JSON string may have no raw line break.
    """
    if body.find(b"\n", start, min(start + _FIRST_LINE, end)) >= 0:
        return False
    has_escape = body[start - 2 : start - 1] == b"\\" or body.find(b"\\", start, end) >= 0
    return bool(_IMAGE_START.match(body, start, end)) and not has_escape and not _COLON.match(body, end + 1)


def _is_text(body: bytes | bytearray, start: int, end: int) -> bool:
    """Return whether the bytes after a quote begin a JSON string that is not base64, even base64 with escaped white space in it."""
    return not (_AFTER_STRING.match(body, start, end) or _IMAGE_START.match(body, start, end))


def _put_back(images: dict[str, BodySlice], document: Any) -> Any:
    """Return the document with the images in the fields of their placeholders.

    This is a loop because documents may be nested more deeply than Python functions may call each other.
    """
    root = [document]
    unseen: list[Any] = [root]
    while unseen:
        container = unseen.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str):
                if value in images:
                    container[key] = images[value]
            elif isinstance(value, dict | list):
                unseen.append(value)
    return root[0]


T = TypeVar("T", bound=BaseModel)

JSON_TYPES = ("application/json", "text/json", "", "application/x-www-form-urlencoded")
"""Media types of JSON. `curl -d` sends the last one, unless the user names another. `OriginMiddleware` refuses forms of foreign pages."""
_LARGE = 1 << 20
"""A reservation of up to this many bytes is kept as it is: measuring the parsed request would cost more than the memory is worth."""


class ClientDisconnected(Exception):
    """The client closed the connection before the response was complete."""


class RequestBodyReader:
    """Reads request bodies and counts the memory of all bodies that are in flight. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits from `max_body_mb`, `max_bodies_mb` and `body_timeout`."""
        self.max_body = settings.max_body_mb << 20
        """The upper bound of one body, in bytes."""
        self.max_total = settings.max_bodies_mb << 20
        """The upper bound of the memory of all bodies, in bytes."""
        self.timeout = settings.body_timeout
        """In seconds."""
        self.bytes = 0
        """The memory that is reserved now."""
        metrics.BODY_BYTES.set_function(lambda: self.bytes)

    @asynccontextmanager
    async def json(self, scope: Scope, receive: Receive) -> AsyncIterator["JsonBody"]:
        """Yield the body of an HTTP request. Its memory is reserved until the block ends.

        Raises UnsupportedMediaType unless the media type is JSON, BodyTooLarge, BodyTooSlow, TooManyRequests if other bodies leave no room,
        and ClientDisconnected.
        """
        headers = Headers(scope=scope)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in JSON_TYPES and not media_type.endswith("+json"):
            raise UnsupportedMediaType(f"The body must be application/json, not {media_type}.")
        _check_not_compressed(headers)
        with self._reserved() as reservation:
            with timed("body"):
                body = JsonBody(await self._read_in_time(headers, receive, reservation), reservation)
            yield body

    @asynccontextmanager
    async def form(self, scope: Scope, receive: Receive) -> AsyncIterator[Form]:
        """Yield the form in the body of an HTTP request. Its memory is reserved until the block ends. Raises as `json`."""
        headers = Headers(scope=scope)
        boundary = form_boundary(headers.get("content-type", ""))
        _check_not_compressed(headers)
        with self._reserved() as reservation:
            with timed("body"):
                body = await self._read_in_time(headers, receive, reservation)
            reservation.reserve(2 * len(body))  # the fields are copies
            form = parse_form(body, boundary)
            del body
            yield form

    @contextmanager
    def message(self, message: bytes) -> Iterator["JsonBody"]:
        """Yield a WebSocket's message as a body. Its memory is reserved until the block ends. Raises BodyTooLarge and TooManyRequests."""
        with self._reserved() as reservation:
            reservation.grow_to(len(message))
            body = JsonBody(message, reservation)
            del message
            yield body

    def reservation(self) -> "BodyReservation":
        """Return an empty reservation, for the bytes of a message that is arriving. The caller releases it."""
        return BodyReservation(self)

    @contextmanager
    def _reserved(self) -> Iterator["BodyReservation"]:
        reservation = BodyReservation(self)
        try:
            yield reservation
        finally:
            reservation.release()

    async def _read_in_time(self, headers: Headers, receive: Receive, reservation: "BodyReservation") -> bytes | bytearray:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._read(headers, receive, reservation)
        except TimeoutError:
            raise BodyTooSlow(f"The body was not complete after {self.timeout:g} s.") from None

    async def _read(self, headers: Headers, receive: Receive, reservation: "BodyReservation") -> bytes | bytearray:
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            reservation.check(int(declared))
        body, more = bytearray(), True  # grows in place; joining a list of chunks would hold them twice
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk, more = message.get("body", b""), message.get("more_body", False)
            reservation.grow_to(len(body) + len(chunk))
            if not body and not more:
                return cast(bytes, chunk)
            body += chunk
        return body


def _check_not_compressed(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.")


class JsonBody:
    """The body of one request and its reservation. A body is parsed once; afterwards only the images that stay in it keep it alive."""

    def __init__(self, body: bytes | bytearray, reservation: "BodyReservation") -> None:
        self._body: bytes | bytearray | None = body
        self._reservation = reservation
        self._more = 0
        """The size of the texts that `parse_more` has parsed, in bytes."""

    def parse(self, validate: Callable[[dict[str, Any]], T], *, max_text: int | None) -> T:
        """Parse the JSON object, drop it, and return the request that `validate` has made of it.

        The memory for parsing is reserved first. Afterwards the reservation shrinks to the size of the result. `max_text`: as for
        `JsonText`. Raises InvalidRequest, BodyTooLarge and TooManyRequests, and the errors of `validate`.
        """
        body, self._body = self._body, None
        assert body is not None
        size, text = len(body), JsonText(body, max_text=max_text)
        del body
        reserved = _with_decoded(size, text.image_size) + text.parsed_size
        self._reservation.reserve(reserved)
        request = validate(_object(text))
        if reserved > _LARGE:
            request_size, images = validated_size(request)
            self._reservation.shrink_to((_with_decoded(size, images) if images else 0) + request_size)
        elif not text.image_size:
            self._reservation.shrink_to(text.parsed_size)
        return request

    def parse_more(self, value: bytes) -> Any:
        """Parse another JSON text that the request needs, such as a stored conversation, and reserve its memory as if it were in the body.

        The texts of a request may together be as large as a body. Raises BodyTooLarge and TooManyRequests.
        """
        text = JsonText(value, max_text=None)
        self._more += len(value)
        self._reservation.check(self._more, "stored conversation")
        self._reservation.grow_by(_with_decoded(len(value), text.image_size) + text.parsed_size)
        return text.parse()


def _with_decoded(body: int, images: int) -> int:
    """Return the size of a body and of its base64 images once they are decoded, in bytes. The body stays in memory meanwhile."""
    return body + images * 3 // 4


def _object(text: JsonText) -> dict[str, Any]:
    value = text.parse()
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


class BodyReservation:
    """The part of the reader's memory that is reserved for one body."""

    def __init__(self, body_reader: RequestBodyReader) -> None:
        self._body_reader = body_reader
        self._bytes = 0

    def check(self, size: int, name: str = "body") -> None:
        """Raise BodyTooLarge if a body of `size` bytes is beyond the limit for one body. `name`: of the body, for the error message."""
        if size > self._body_reader.max_body:
            raise BodyTooLarge(f"The {name} is larger than {self._body_reader.max_body >> 20} MiB.")

    def grow_to(self, size: int) -> None:
        """Reserve memory for a raw body of `size` bytes.

        Raises BodyTooLarge if the body is beyond a limit, or TooManyRequests if other bodies leave no room.
        """
        self.check(size)
        self.reserve(size)

    def reserve(self, size: int) -> None:
        """Make the reservation at least `size` bytes, which may be more than one raw body may have. Raises as `grow_to`."""
        if size > self._body_reader.max_total:
            raise BodyTooLarge(f"The body takes more than {self._body_reader.max_total >> 20} MiB of memory once it is parsed.")
        more = max(size - self._bytes, 0)
        if self._body_reader.bytes + more > self._body_reader.max_total:
            raise TooManyRequests("The server is busy with large requests. Try again later.", code="bodies_full", retry_after=1)
        self._body_reader.bytes += more
        self._bytes += more

    def grow_by(self, size: int) -> None:
        """Reserve `size` more bytes. Raises as `grow_to`."""
        self.reserve(self._bytes + size)

    def shrink_to(self, size: int) -> None:
        """Release the memory beyond `size` bytes."""
        excess = max(self._bytes - size, 0)
        self._body_reader.bytes -= excess
        self._bytes -= excess

    def release(self) -> None:
        """Release all memory of the reservation. A second call does nothing."""
        self.shrink_to(0)
