"""uvicorn's HTTP protocol, with what it lacks against strangers: connections that say nothing, that say it slowly, that never come to the
point or never read, are closed; and what is not HTTP gets its 400 in OpenAI's shape, too. Upgrades other than to WebSockets are ignored,
HTTP/1.0 gets no chunks, and a client that has closed its side gets its answer."""

import asyncio
import socket
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_head import BAD_REQUEST, Refused, check_head, is_websocket
from llava_gateway.observability.context import new_id
from llava_gateway.settings import Settings

MAX_HEAD = 1 << 16
"""Bytes of a request's headers and trailers together."""
BODY = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}'
INVALID = Refused(BAD_REQUEST, "This is not a valid HTTP request.")
TOO_LARGE = Refused("431 Request Header Fields Too Large", "The request's headers are too large.")
BAD_HANDSHAKE = Refused(BAD_REQUEST, "A WebSocket's handshake may have at most 128 headers of 8 KiB.")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET_INTERVAL = 0.1
"""Seconds between two looks at whether a half-closed connection has been reset."""
TCP_CLOSE = 7
"""The state of a connection that was reset (`tcp_states.h`)."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, with this server's limits."""

    settings: Settings
    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _barren_bytes = 0
    _pipelined = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.abort()
            return
        _bound_sending(transport, self.settings.send_timeout)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._pipelined:
            return
        if self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        self._barren_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._barren_bytes > MAX_HEAD and not self.transport.is_closing():
            self._refuse(TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # the parser takes what follows the head for another protocol
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._pipelined:
                self._refuse(error.__context__ if isinstance(error.__context__, Refused) else INVALID)

    def _upgrade(self, rest: bytes) -> None:
        """Begin a WebSocket. Any other upgrade is ignored (RFC 9110, section 7.8): the request is parsed again without that header."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if not is_websocket(method, version, self.headers):
            head = [b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())]
            head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            self._parse(b"".join((*head, b"\r\n", rest)))
        elif rest:  # a client has to wait for the handshake's answer
            self._refuse(INVALID)
        else:
            self._head_has_come()
            self.scope["method"] = method.decode()
            self.handle_websocket_upgrade()
            if not getattr(self.transport.get_protocol(), "handshake_initiated", True):
                self._refuse(BAD_HANDSHAKE)  # `websockets` has limits of its own, and says nothing

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to keep the connection for the answer, although the client will send no more.

        A client that has left looks the same as one that still reads (RFC 9112, section 9.6) until something is sent to it: the system
        of the first answers with a reset. So it is sent bytes that clients ignore: an interim response (RFC 9110, section 15.2)
        before the answer, or a leading zero of the next chunk's size (RFC 9112, section 7.1) in the middle of it. HTTP/1.0 has no such
        bytes; its client is taken to have left, as nginx does when it proxies with HTTP/1.0 and its own client leaves."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or cycle.scope["http_version"] != "1.1":
            return False
        if _tcp_socket(self.transport) is None:
            return False
        if not cycle.response_started:
            self.transport.write(CONTINUE)
        elif cycle.chunked_encoding:
            self.transport.write(b"0")
        cycle.keep_alive = False
        self._watch_for_reset()
        return True

    def _watch_for_reset(self) -> None:
        """The event loop watches for nothing more once the client has sent its last byte."""
        if self.transport.is_closing():
            return
        connection = _tcp_socket(self.transport)
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            self.transport.abort()
        else:
            self.loop.call_later(RESET_INTERVAL, self._watch_for_reset)

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
        check_head(self.parser.get_method(), self.parser.get_http_version(), self.headers)
        if self.parser.should_upgrade():
            return  # to `_upgrade`
        self._head_has_come()
        self._barren_bytes = 0
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope["writer"] = _BodyWriter(self.cycle)  # type: ignore[typeddict-unknown-key]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, _without_chunks(app, cycle) if cycle.scope["http_version"] == "1.0" else app)

    def on_body(self, body: bytes) -> None:
        self._barren_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._barren_bytes = 0
            super().on_message_complete()

    def _refuse(self, refused: Refused) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the middle of a response there is no place for another
            return
        body = BODY % (refused.message.encode(), InvalidRequest.type.encode())
        head = (
            f"HTTP/1.1 {refused.status}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new_id()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect_head(self) -> None:
        """The next request's headers, in time; what is left of the last one's body counts as well."""
        self._head = self.loop.call_later(self.settings.head_timeout, self._close)

    def _head_has_come(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None

    def _close(self) -> None:
        self._head = None
        self.transport.close()


def http_protocol(settings: Settings) -> type[HttpProtocol]:
    """Return the protocol class for a server with these settings, as `uvicorn.Config(http=...)` takes it."""
    return type("HttpProtocol", (HttpProtocol,), {"settings": settings})


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


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """The application for a client of HTTP/1.0, which knows no chunks: a body without a length ends with the connection."""

    async def wrapped(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        has_length = False

        async def send_as_it_is(message: ASGISendEvent) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = None if has_length else False
            elif message["type"] == "http.response.body" and not has_length:
                cycle.expected_content_length = len(message.get("body", b""))  # uvicorn would have no more than was announced
            await send(message)

        await app(scope, receive, send_as_it_is)

    return wrapped


def _tcp_socket(transport: asyncio.Transport) -> Any:
    connection: Any = transport.get_extra_info("socket")
    return connection if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6) else None


def _bound_sending(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel end the connection if what is sent is not taken for so long (TCP_USER_TIMEOUT, tcp(7)), a closed one, too."""
    if connection := _tcp_socket(transport):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
