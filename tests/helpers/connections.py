"""A real uvicorn with the gateway's protocols on loopback, without an engine, and raw connections to it."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil
import uvicorn
from helpers.waiting import wait_for
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

from llava_gateway.api.openai.router import render_error
from llava_gateway.errors import GatewayError
from llava_gateway.http.endpoints import JsonEndpoint, JsonWebSocketEndpoint, WebSocketWriter
from llava_gateway.http.middleware.observability import ObservabilityMiddleware, Recorder
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.http.response import ResponseWriter
from llava_gateway.http.uvicorn_protocol import http_protocol
from llava_gateway.http.websocket_protocol import websocket_protocol
from llava_gateway.serving.admission import Admission, RequestQueue
from llava_gateway.settings import Settings

KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
UPGRADE = b"Connection: upgrade\r\nUpgrade: websocket\r\n" + KEY


@dataclass
class Gateway:
    port: int
    server: uvicorn.Server
    bodies: RequestBodyReader
    running: list[str] = field(default_factory=list)
    """Requests that are in progress."""
    cancelled: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    """Lets the requests in progress end."""

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def ask(self, request: bytes) -> bytes:
        """Send a request, and return all bytes that the server sends before it closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def open_websocket(self, *, buffer: int | None = None) -> socket.socket:
        connection = self.connect(buffer=buffer)
        connection.sendall(b"GET /socket HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101"), head
        return connection


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while data := connection.recv(1 << 16):
            answer += data
    except ConnectionError:
        pass
    return answer


def post(body: object, more: bytes = b"", *, version: bytes = b"1.1", path: bytes = b"/work") -> bytes:
    content = json.dumps(body).encode()
    return b"POST %b HTTP/%b\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (path, version, more, len(content), content)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, size: int | None = None) -> bytes:
    """Return a client's WebSocket frame, masked with zeros. `size`: the length that its header declares."""
    size = len(payload) if size is None else size
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 * fin | opcode]) + length + bytes(4) + payload


def closing_code(connection: socket.socket) -> int:
    """Return the code of the server's close frame."""
    data = read_all(connection)
    while data and data[0] != 0x88:
        data = data[2 + (data[1] & 0x7F) :]
    assert data, "closed without a close frame"
    return int.from_bytes(data[2:4], "big")


class Errors(logging.Handler):
    """A log handler that keeps the error messages: no client may cause one."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@contextmanager
def gateway(loop: Literal["asyncio", "uvloop"] = "asyncio", **settings: Any) -> Iterator[Gateway]:
    """Run a server with two routes.

    POST /work waits for `go` and then answers with the request's body; `{"stream": true}` asks for a stream, and `{"fill": N}` becomes N
    letters. /socket answers a message with the message's length and N letters; it answers `{"early": true}` at once with the message."""
    given = Settings(**{"head_timeout": 1, "body_timeout": 1, "send_timeout": 2, "keep_alive": 15} | settings)
    bodies = RequestBodyReader(given)
    running: Gateway

    async def work() -> None:
        running.running.append("work")
        try:
            while not running.go.is_set():  # noqa: ASYNC110 # the event belongs to another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            running.cancelled.append("work")
            raise
        finally:
            running.running.pop()

    async def handle(body: Any, reply: ResponseWriter) -> None:
        value = parsed(body)
        value |= {"fill": "x" * value["fill"]} if "fill" in value else {}
        if not value.get("stream"):
            await work()
            await reply.json(200, value)
            return
        async with reply.events(given.keep_alive):
            await reply.event(b"begun")
            await work()
            await reply.event(json.dumps(value).encode())

    async def handle_message(body: Any, answer: WebSocketWriter) -> None:
        value = parsed(body)
        if value.get("early"):
            await answer(value, last=True)
            await work()
            return
        await work()
        await answer({"length": len(json.dumps(value)), "fill": "x" * value.get("fill", 0)})

    async def fail_message(error: GatewayError, answer: WebSocketWriter) -> None:
        await answer({"error": error.message})

    admission = Admission(given, [RequestQueue(given)])
    routes = [
        Route("/work", JsonEndpoint(handle, render_error, admission, bodies), methods=["POST"]),
        WebSocketRoute("/socket", JsonWebSocketEndpoint(handle_message, fail_message, admission, bodies)),
    ]
    app = ObservabilityMiddleware(Starlette(routes=routes), lambda _: render_error, Recorder(None, None))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        port=port,
        loop=loop,
        http=http_protocol(given),
        ws=websocket_protocol(given, bodies),
        ws_max_size=given.max_body_mb << 20,
        ws_per_message_deflate=False,
        lifespan="off",
        timeout_keep_alive=1,
        log_config=None,
        access_log=False,
    )
    running = Gateway(port, uvicorn.Server(config), bodies)
    thread = threading.Thread(target=running.server.run, daemon=True)
    errors = Errors(logging.ERROR)
    logging.getLogger().addHandler(errors)
    thread.start()
    try:
        wait_for(lambda: running.server.started)
        yield running
    finally:
        running.go.set()
        running.server.should_exit = running.server.force_exit = True
        thread.join(20)
        logging.getLogger().removeHandler(errors)
    assert bodies.bytes == 0
    assert not errors.messages


def parsed(body: Any) -> dict[str, Any]:
    return body if isinstance(body, dict) else body.parse(lambda value: value, max_text=None)


def rss() -> int:
    return int(psutil.Process().memory_info().rss)
