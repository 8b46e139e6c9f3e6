"""Writing a response: as one JSON body, as a body in parts, or as a stream such as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson
from starlette.types import Scope, Send

from llava_gateway.errors import GatewayError
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta

Header = tuple[bytes, bytes]
UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
KEEP_ALIVE = b": keep-alive\n\n"
Parts = Sequence[bytes | bytearray]
"""The parts of a body, in order."""
JSON = b"application/json"
TextFrame = Callable[[], tuple[bytes, bytes] | None]
"""Returns the bytes before and after a text as JSON, in the frames of a delta that has nothing but text. None: there is no such frame."""
PIECE = 1 << 20
"""The size of the pieces in which a long body is sent, in bytes. Other requests are served between two pieces."""


class Writer(Protocol):
    """A shortcut to the socket for the middle of a response's body. Our HTTP protocol puts one into the ASGI scope, as `writer`."""

    @property
    def is_ready(self) -> bool:
        """Whether the client reads fast enough for more data."""

    def write(self, data: bytes) -> None:
        """Send the next bytes of the body at once."""

    def between(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        """Return a function that sends its argument between `start` and `end` at once, or returns False if the client is not ready."""


class ResponseWriter:
    """Writes the response to one request: either by `json`, `body` or `parts`, or by frames within the block of `stream` or `events`.

    This response has one event:

        response = ResponseWriter(send)
        async with response.events(keep_alive=15):
            await response.event(b'{"text":"Hello"}')
    """

    def __init__(self, send: Send, *, writer: Writer | None = None, started: bool = False, headers: Iterable[Header] = ()) -> None:
        """Create the writer.

        `send`: the ASGI application's. `writer`: the server's shortcut, if it has one. `started`: whether the status line has been sent
        already. `headers`: are added to the headers that each method sends.
        """
        self._send = send
        self._writer = writer
        self.started = started
        """The status line has been sent, so an error can no longer change the status."""
        self.ended = False
        """The last chunk has been sent; a disconnect no longer cancels the request."""
        self.render_failure: Callable[[GatewayError], bytes] | None = None
        """Returns the last bytes of a stream that an error ends. None: the API's error renderer needs nothing of the stream."""
        self._headers = tuple(headers)
        self._silent = True

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the response, which must not have started."""
        self._headers = (*self._headers, (name, value))

    async def json(self, status: int, value: Any, headers: tuple[Header, ...] = ()) -> None:
        """Send a whole response with `value` as JSON."""
        await self.body(status, orjson.dumps(value), JSON, headers)

    async def body(self, status: int, body: bytes, media_type: bytes, headers: tuple[Header, ...] = ()) -> None:
        """Send a whole response."""
        await self._start(status, (*_content_headers(media_type, len(body)), *headers))
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def parts(self, status: int, parts: Parts, media_type: bytes) -> None:
        """Send a whole response whose body is in parts. The parts are never joined to one copy of the body."""
        await self._start(status, _content_headers(media_type, sum(map(len, parts))))
        pending: list[bytes | bytearray] = []
        size = 0
        for part in parts:
            for start in range(0, len(part), PIECE):
                pending.append(part[start : start + PIECE])
                size += len(pending[-1])
                if size > PIECE:
                    await self._send({"type": "http.response.body", "body": b"".join(pending), "more_body": True})
                    await asyncio.sleep(0)
                    pending, size = [], 0
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"".join(pending)})

    @asynccontextmanager
    async def stream(self, media_type: bytes, keep_alive: float, silence: bytes, last: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
        """Start a response whose body is sent within the block, by `frames` and `deltas`.

        `keep_alive`: the upper bound of the stream's silence, in seconds. `silence`: the bytes that break a silence. They have no meaning
        in this media type, and keep proxies from closing the connection. `last`: returns the last bytes of the body when the block ends.
        If the block raises an error, the response stays open: the error's renderer ends it with `end`.
        """
        await self._start(200, ((b"content-type", media_type), *UNBUFFERED))
        ticker = asyncio.create_task(self._tick(keep_alive / 2, silence))
        try:
            yield
        finally:
            ticker.cancel()
        await self.end(last())

    @asynccontextmanager
    async def events(self, keep_alive: float, last: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
        """Start a response of server-sent events, as `stream` does; `event` sends one."""
        async with self.stream(b"text/event-stream; charset=utf-8", keep_alive, KEEP_ALIVE, last):
            yield

    async def event(self, data: bytes) -> None:
        """Send one server-sent event. `data`: without line breaks, such as JSON."""
        await self.frames(b"data: " + data + b"\n\n")

    async def frames(self, frames: bytes) -> None:
        """Send bytes of the stream, framed as its media type requires."""
        self._silent = False
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})

    async def deltas(self, deltas: DeltaStream, render: Callable[[Delta], bytes], text_frame: TextFrame | None = None) -> None:
        """Send all deltas of an answer.

        `render`: returns a delta's frames, or nothing. With a `writer` each delta is sent in the engine's call stack. While the client is
        slow, the deltas are held and joined. `text_frame`: is asked once for the frame of deltas that have nothing but text, so that these
        need not be rendered. Raises the engine's error.
        """
        writer = self._writer

        def write_at_once(delta: Delta) -> bool:
            assert writer
            if not writer.is_ready:
                return False
            if frames := render(delta):
                self._silent = False
                writer.write(frames)
            return True

        write_text = self._text_writer(writer, text_frame) if writer and text_frame else None
        async for delta in deltas.deltas(write_at_once if writer else None, write_text):
            if frames := render(delta):
                await self.frames(frames)

    def _text_writer(self, writer: Writer, text_frame: TextFrame) -> Callable[[str], bool]:
        """Return a function that sends the frame of a text at once, or returns False if it cannot. It runs for every token."""
        write: Callable[[bytes], bool] | None = None

        def write_text(text: str) -> bool:
            nonlocal write
            if not text:
                return True
            if write is None:
                if (frame := text_frame()) is None:
                    return False
                write = writer.between(*frame)
            self._silent = False
            return write(orjson.dumps(text))

        return write_text

    async def end(self, last: bytes = b"") -> None:
        """Send the last bytes of a stream's body and end the response."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": last})

    async def _tick(self, interval: float, silence: bytes) -> None:
        """Send `silence` after each interval in which no frames were sent."""
        while True:
            self._silent = True
            await asyncio.sleep(interval)
            if self._silent:
                await self._send({"type": "http.response.body", "body": silence, "more_body": True})

    async def _start(self, status: int, headers: tuple[Header, ...]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]})


def _content_headers(media_type: bytes, length: int) -> tuple[Header, Header]:
    return (b"content-type", media_type), (b"content-length", str(length).encode())


def retry_after(error: GatewayError) -> tuple[Header, ...]:
    """Return the `retry-after` header of an error, if a retry may succeed."""
    return () if error.retry_after is None else ((b"retry-after", str(error.retry_after).encode()),)


ErrorRenderer = Callable[[GatewayError, ResponseWriter], Awaitable[None]]
"""Sends an error in an API's format, before or after the status line has been sent."""
FindErrorRenderer = Callable[[Scope], ErrorRenderer]
"""Returns the error renderer of the API that serves a request's path."""
