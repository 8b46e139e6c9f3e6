"""uvicorn's HTTP protocol, with what it lacks against strangers: connections that say nothing, that say it slowly, that never come to the
point or never read, are closed; and what is not HTTP gets its 400 in OpenAI's shape, too."""

import asyncio
import re
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llava_gateway.errors import InvalidRequest
from llava_gateway.ids import new_id
from llava_gateway.settings import Settings

MAX_HEAD = 1 << 16
"""Bytes of a request's headers and trailers together."""
BODY = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}'
H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The class for a server with these limits."""

    class HttpProtocol(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _barren_bytes = 0
        _pipelined = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
                return
            _bound_sending(transport, settings.send_timeout)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_has_come()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._pipelined:
                return
            if self._head is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_head()
            if self._head and b"h2c" in data:  # Java's client offers it to every server; the parser would take the body for HTTP/2
                data = H2C.sub(b"", data, count=1)
            self._barren_bytes += len(data)
            super().data_received(data)
            if self._barren_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse("431 Request Header Fields Too Large", b"The request's headers are too large.")

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            """Of the head, and of trailers after a body in chunks. What is raised here ends the connection with a 400."""
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > MAX_HEAD:
                raise ValueError("too many headers")
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                # Before its answer has left, the next request is not taken: reading would have to stop, and with it the sight of a client
                # that leaves. A client that pipelines must be ready for this (RFC 9112, section 9.3.2).
                self._pipelined = True
                self.cycle.keep_alive = False
                raise ValueError("pipelined")
            self._head_has_come()
            self._barren_bytes = 0
            super().on_headers_complete()
            if self.cycle is not None:
                self.cycle.scope["writer"] = _BodyWriter(self.cycle)  # type: ignore[typeddict-unknown-key]

        def on_body(self, body: bytes) -> None:
            self._barren_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._barren_bytes = 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            if not self._pipelined:
                self._refuse("400 Bad Request", b"This is not a valid HTTP request.")

        def _refuse(self, status: str, message: bytes) -> None:
            if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
                self.transport.close()  # in the middle of a response there is no place for another
                return
            body = BODY % (message, InvalidRequest.type.encode())
            head = (
                f"HTTP/1.1 {status}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {new_id()}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

        def _expect_head(self) -> None:
            """The next request's headers, in time; what is left of the last one's body counts as well."""
            self._head = self.loop.call_later(settings.head_timeout, self._close)

        def _head_has_come(self) -> None:
            if self._head:
                self._head.cancel()
                self._head = None

        def _close(self) -> None:
            self._head = None
            self.transport.close()

    return HttpProtocol


class _BodyWriter:
    """A stream's frames to the socket, without their way through middleware, coroutines and messages that none of them looks into."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        return self._cycle.chunked_encoding is True and not self._cycle.flow.write_paused

    def write(self, data: bytes) -> None:
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def _bound_sending(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel end the connection if what is sent is not taken for so long (TCP_USER_TIMEOUT, tcp(7)), a closed one, too."""
    connection: Any = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
