"""Writing a response: once as JSON, or frame by frame as server-sent events."""

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
"""Of a body, in order."""
JSON = b"application/json"
PIECE = 1 << 20
"""Bytes of a body that leave at once. Between two pieces others are served."""


class Writer(Protocol):
    """Our server's short cut for what stands in the middle of a response's body; `writer` in the ASGI scope."""

    @property
    def is_ready(self) -> bool:
        """Whether the client reads fast enough for more."""

    def write(self, data: bytes) -> None: ...


class ResponseWriter:
    """The response to one request. Knows whether its status line has left."""

    def __init__(self, send: Send, *, writer: Writer | None = None, started: bool = False, headers: Iterable[Header] = ()) -> None:
        """`headers`: besides those that whoever renders it gives it."""
        self._send = send
        self._writer = writer
        self.started = started
        self.ended = False
        """Whether its last piece is on its way. What is left to do then is ours, and no matter of the client's."""
        self._headers = tuple(headers)
        self._silent = True

    async def json(self, status: int, value: Any, headers: tuple[Header, ...] = ()) -> None:
        await self.body(status, orjson.dumps(value), JSON, headers)

    async def body(self, status: int, body: bytes, media_type: bytes, headers: tuple[Header, ...] = ()) -> None:
        await self._start(status, (*_described(media_type, len(body)), *headers))
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def parts(self, status: int, parts: Parts, media_type: bytes) -> None:
        """As `body`, of a body in parts, which are never copied into one."""
        await self._start(status, _described(media_type, sum(map(len, parts))))
        held: list[bytes | bytearray] = []
        size = 0
        for part in parts:
            for start in range(0, len(part), PIECE):
                held.append(part[start : start + PIECE])
                size += len(held[-1])
                if size > PIECE:
                    await self._send({"type": "http.response.body", "body": b"".join(held), "more_body": True})
                    await asyncio.sleep(0)
                    held, size = [], 0
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"".join(held)})

    @asynccontextmanager
    async def stream(self, media_type: bytes, keep_alive: float, silence: bytes, last: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
        """A response in pieces; ends with the block and with what `last` then makes, or with `end` if the block fails. It is never silent
        for longer than `keep_alive` seconds: `silence` goes out, which says nothing, so that nobody between here and the client takes the
        connection for dead."""
        await self._start(200, ((b"content-type", media_type), *UNBUFFERED))
        ticking = asyncio.create_task(self._tick(keep_alive / 2, silence))
        try:
            yield
        finally:
            ticking.cancel()
        await self.end(last())

    @asynccontextmanager
    async def events(self, keep_alive: float, last: Callable[[], bytes] = bytes) -> AsyncIterator[None]:
        """A stream of server-sent events."""
        async with self.stream(b"text/event-stream; charset=utf-8", keep_alive, KEEP_ALIVE, last):
            yield

    async def event(self, data: bytes) -> None:
        """One server-sent event; `data` has no line breaks (JSON never does)."""
        await self.frames(b"data: " + data + b"\n\n")

    async def frames(self, frames: bytes) -> None:
        """Pieces of the stream, framed as its media type has them."""
        self._silent = False
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})

    async def deltas(self, answer: DeltaStream, render: Callable[[Delta], bytes]) -> None:
        """All deltas of an answer, rendered as `frames` has them; a delta may show as nothing. With a writer they leave as soon as the
        engine has them, and are held and joined while the client is slow."""
        writer = self._writer

        def take(delta: Delta) -> bool:
            assert writer
            if not writer.is_ready:
                return False
            if frames := render(delta):
                self._silent = False
                writer.write(frames)
            return True

        async for delta in answer.deltas(take if writer else None):
            if frames := render(delta):
                await self.frames(frames)

    async def end(self, last: bytes = b"") -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": last})

    async def _tick(self, interval: float, silence: bytes) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(interval)
            if self._silent:
                await self._send({"type": "http.response.body", "body": silence, "more_body": True})

    async def _start(self, status: int, headers: tuple[Header, ...]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]})


def _described(media_type: bytes, length: int) -> tuple[Header, Header]:
    return (b"content-type", media_type), (b"content-length", str(length).encode())


def retry_after(error: GatewayError) -> tuple[Header, ...]:
    """The header that says when a retry makes sense, if one does."""
    return () if error.retry_after is None else ((b"retry-after", str(error.retry_after).encode()),)


ErrorRenderer = Callable[[GatewayError, ResponseWriter], Awaitable[None]]
"""Renders an error as a door's dialect has it, before or after the status line has left."""
FindErrorRenderer = Callable[[Scope], ErrorRenderer]
"""The `Fail` of the door that a request is at."""
