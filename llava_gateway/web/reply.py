"""Writing a response: once as JSON, or frame by frame as server-sent events."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.types import Send

from llava_gateway.errors import GatewayError

EVENT_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class Reply:
    """The response to one request. Knows whether its status line has left."""

    def __init__(self, send: Send, *, started: bool = False) -> None:
        self._send = send
        self.started = started

    async def json(self, status: int, value: Any, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        await self.body(status, orjson.dumps(value), b"application/json", headers)

    async def body(self, status: int, body: bytes, media_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        length = str(len(body)).encode()
        await self._start(status, ((b"content-type", media_type), (b"content-length", length), *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def open_events(self) -> None:
        await self._start(200, EVENT_STREAM)

    async def event(self, data: bytes) -> None:
        """One server-sent event; `data` has no line breaks (JSON never does)."""
        await self.frames(b"data: " + data + b"\n\n")

    async def frames(self, frames: bytes) -> None:
        """Events that are framed already."""
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})

    async def close_events(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})


Fail = Callable[[GatewayError, Reply], Awaitable[None]]
"""Renders an error as a door's dialect has it, before or after the status line has left."""
