"""uvicorn's HTTP protocol, with protection against hostile clients and a shortcut for streams.

A connection is closed if its client sends nothing, sends too slowly, sends too many bytes without a request, or does not read. Invalid
HTTP is answered 400 in OpenAI's format. Upgrades to other protocols than WebSocket are ignored. HTTP/1.0 gets no chunks. A client that has
closed its sending side gets its response.

These names of uvicorn are not documented. They were read in uvicorn 0.54.0; `tests/unit/http/test_uvicorn_contract.py` fails when one of
them changes.

- `uvicorn._types`: `ASGI3Application`, `ASGIReceiveCallable`, `ASGISendCallable`, `ASGISendEvent`, `Scope`. Only for type checks.
- `uvicorn.protocols.http.httptools_impl.HttpToolsProtocol` is the base class of `HttpProtocol`.
  Its methods that are overridden: `connection_made`, `connection_lost`, `data_received`, `eof_received`, `on_message_begin`, `on_header`,
  `on_headers_complete`, `on_body`, `on_message_complete`, `_start_asgi_task`.
  Its methods that are called: `_unset_keepalive_if_required`, `handle_websocket_upgrade`.
  Its attributes that are used: `connections`, `cycle`, `headers`, `loop`, `parser`, `scope`, `transport`, `url`.
- `RequestResponseCycle` in the same module is the state of one request.
  Its attributes that are read: `disconnected`, `flow`, `more_body`, `response_complete`, `response_started`, `scope`, `transport`.
  Its attributes that are also set: `chunked_encoding`, `expected_content_length`, `keep_alive`.
- `uvicorn.protocols.http.flow_control.FlowControl`: its attribute `write_paused` is read.
- `handshake_initiated` of the WebSocket protocol, see `websocket_protocol.py`.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_head import BAD_REQUEST, Refused, check_head, is_websocket
from llava_gateway.observability.context import new_id
from llava_gateway.settings import Settings

MAX_HEAD = 1 << 16
"""The upper bound of a request's headers and trailers together, in bytes."""
BODY = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}'
INVALID = Refused(BAD_REQUEST, "This is not a valid HTTP request.")
TOO_LARGE = Refused("431 Request Header Fields Too Large", "The request's headers are too large.")
BAD_HANDSHAKE = Refused(BAD_REQUEST, "A WebSocket's handshake may have at most 128 headers of 8 KiB.")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET_INTERVAL = 0.1
"""Seconds between two checks whether a half-closed connection has been reset."""
TCP_CLOSE = 7
"""The state of a TCP connection that was reset (Linux, `tcp_states.h`)."""


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection with the limits of the settings. `http_protocol` makes the class for a server."""

    settings: Settings
    _head_timer: asyncio.TimerHandle | None = None
    """Closes the connection if the next request's head does not arrive in time."""
    _head_bytes = 0
    """The size of the headers and trailers of the current request so far."""
    _idle_bytes = 0
    """Bytes received since the last progress: a complete head, a part of a body, or the end of a body."""
    _pipelined = False
    """The client has sent a request before the last response was complete. Nothing more is read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or abort it beyond `max_connections`."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.abort()
            return
        _set_send_timeout(transport, self.settings.send_timeout)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes. Refuse a client that sends more than MAX_HEAD bytes without progress."""
        if self._pipelined:
            return
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._start_head_timer()
        self._idle_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._idle_bytes > MAX_HEAD and not self.transport.is_closing():
            self._refuse(TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # the parser takes the bytes after the head for another protocol
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._pipelined:
                self._refuse(error.__context__ if isinstance(error.__context__, Refused) else INVALID)

    def _upgrade(self, rest: bytes) -> None:
        """Open a WebSocket. Any other upgrade is ignored (RFC 9110, section 7.8): the request is parsed again without that header.

        `rest`: the bytes after the head.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if not is_websocket(method, version, self.headers):
            head = [b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())]
            head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
            self._parse(b"".join((*head, b"\r\n", rest)))
        elif rest:  # the client must wait for the response to the handshake
            self._refuse(INVALID)
        else:
            self._stop_head_timer()
            self.scope["method"] = method.decode()
            self.handle_websocket_upgrade()
            if not getattr(self.transport.get_protocol(), "handshake_initiated", True):
                self._refuse(BAD_HANDSHAKE)  # the library `websockets` has its own limits, and does not report them

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open for the response, although the client will send nothing more.

        A client that has disconnected and a client that only closed its sending side look the same (RFC 9112, section 9.6). They differ
        when something is sent: the system of the disconnected client answers with a reset. So bytes are sent that clients ignore: an
        interim response (RFC 9110, section 15.2) before the response, or a leading zero of the next chunk's size (RFC 9112, section 7.1)
        within it. HTTP/1.0 has no such bytes. Its client counts as disconnected: nginx, as a client that speaks HTTP/1.0, closes a
        connection in this way when its own client disconnects.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or cycle.scope["http_version"] != "1.1":
            return False
        if _tcp_socket(self.transport) is None or self.transport.get_extra_info("sslcontext"):  # TLS has no half-closed connections
            return False
        if not cycle.response_started:
            self.transport.write(CONTINUE)
        elif cycle.chunked_encoding:
            self.transport.write(b"0")
        cycle.keep_alive = False
        self._watch_for_reset()
        return True

    def _watch_for_reset(self) -> None:
        """Check every RESET_INTERVAL seconds for a reset: the event loop no longer watches a connection whose client has sent its end."""
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
        """Accept a header, or a trailer after a body in chunks. An error raised here ends the connection with a 400."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the app for a request. An error raised here ends the connection with a 400, or with the response of a Refused."""
        if self.cycle is not None and not self.cycle.response_complete:
            # A pipelined request is dropped. To keep it, reading would have to stop, and a disconnect would then go unnoticed. A client
            # that pipelines must be prepared to send its request again (RFC 9112, section 9.3.2).
            self._pipelined = True
            self.cycle.keep_alive = False
            raise ValueError("pipelined")
        check_head(self.parser.get_method(), self.parser.get_http_version(), self.headers)
        if self.parser.should_upgrade():
            return  # `_upgrade` goes on
        self._stop_head_timer()
        self._idle_bytes = 0
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.scope["writer"] = _BodyWriter(self.cycle)  # type: ignore[typeddict-unknown-key]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, _without_chunks(app, cycle) if cycle.scope["http_version"] == "1.0" else app)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._idle_bytes = 0
            super().on_message_complete()

    def _refuse(self, refused: Refused) -> None:
        """Answer a request with an error, and close the connection."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the middle of a response no other response can be sent
            return
        body = BODY % (refused.message.encode(), InvalidRequest.type.encode())
        head = (
            f"HTTP/1.1 {refused.status}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new_id()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _start_head_timer(self) -> None:
        """Close the connection unless the next request's head arrives in time. The rest of the last request's body counts as well."""
        self._head_timer = self.loop.call_later(self.settings.head_timeout, self._close)

    def _stop_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        self.transport.close()


def http_protocol(settings: Settings) -> type[HttpProtocol]:
    """Return the protocol class for a server with these settings, as `uvicorn.Config(http=...)` takes it."""
    return type("HttpProtocol", (HttpProtocol,), {"settings": settings})


class _BodyWriter:
    """Writes a stream's frames to the socket. They skip the middleware and its coroutines, which would pass them on unchanged.

    It implements `http.response.Writer`.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        """Whether the response is in chunks and the client reads fast enough."""
        return self._cycle.chunked_encoding is True and not self._cycle.flow.write_paused

    def write(self, data: bytes) -> None:
        """Send `data` as one chunk, unless the client has disconnected."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def between(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        """Return a function that sends its argument between `start` and `end` as one chunk, or returns False if `is_ready` is False."""
        cycle, flow, send = self._cycle, self._cycle.flow, self._cycle.transport.write
        around, end_of_chunk = len(start) + len(end), end + b"\r\n"

        def write(data: bytes) -> bool:
            if flow.write_paused or cycle.chunked_encoding is not True:
                return False
            if not cycle.disconnected:
                send(b"%x\r\n%b%b%b" % (around + len(data), start, data, end_of_chunk))
            return True

        return write


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """Return the app for a request of HTTP/1.0, which has no chunks: a body without a length ends with the connection."""

    async def wrapped(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        has_length = False

        async def send_unchunked(message: ASGISendEvent) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = None if has_length else False
            elif message["type"] == "http.response.body" and not has_length:
                cycle.expected_content_length = len(message.get("body", b""))  # uvicorn raises an error beyond it
            await send(message)

        await app(scope, receive, send_unchunked)

    return wrapped


def _tcp_socket(transport: asyncio.Transport) -> Any:
    """Return the transport's socket if it is a TCP socket."""
    connection: Any = transport.get_extra_info("socket")
    return connection if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6) else None


def _set_send_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Let the kernel end the connection, even a closed one, if sent data stays unacknowledged for so long (TCP_USER_TIMEOUT, tcp(7))."""
    if connection := _tcp_socket(transport):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
