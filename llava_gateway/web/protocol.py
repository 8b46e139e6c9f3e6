"""uvicorn's HTTP protocol, with what it lacks against strangers: connections that say nothing, that say it slowly, or that never read, are
closed; and what is not HTTP gets its 400 in OpenAI's shape, too."""

import asyncio
import socket
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import Settings

BODY = b'{"error":{"message":"This is not a valid HTTP request.","type":"%b","param":null,"code":null}}' % InvalidRequest.type.encode()


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The class for a server with these limits."""

    class HttpProtocol(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None

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
            if self._head is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_head()
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._head_has_come()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            head = (
                "HTTP/1.1 400 Bad Request\r\n"
                f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n"
                f"x-request-id: {uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + BODY)
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


def _bound_sending(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel end the connection if what is sent is not taken for so long (TCP_USER_TIMEOUT, tcp(7)), a closed one, too."""
    connection: Any = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
