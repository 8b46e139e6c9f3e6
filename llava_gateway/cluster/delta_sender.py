"""The way of deltas from a replica to the gateways that asked: a connection for each gateway, and one write for all that a step of the
engine has brought it. (Ray's own streams take half a millisecond of CPU for each delta, at either end.)"""

import asyncio
import hmac
import os
import pickle
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_gateway.errors import GatewayError
from llava_gateway.types import Delta, Usage

HELLO_TIMEOUT = 5
MAX_UNAUTHENTICATED = 1024
"""Connections that have not said who they are; more are closed at once."""
MOST_UNREAD = 64 << 20
"""Bytes that a gateway may have left unread; then it is taken for gone."""
NAME_BYTES = 32
"""Of a gateway's name, of the replica's challenge to it and of its own question, each in hex digits."""
PROOF_BYTES = 64
SILENT_AFTER, ASKED_EVERY, ASKED_TIMES = 15, 5, 3
"""Seconds, and how often: of a connection that nothing comes over."""

Entry = tuple[int, Delta | None, tuple[int, int, int, int], GatewayError | bool]
"""Of the request with this number: its next delta, its usage so far, and whether or how it has ended."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    token: str
    """That only a replica and the gateways know, who have it from Ray. It proves either to the other, and is never sent."""


def address_of(metadata: Mapping[str, Any]) -> Address | None:
    """Of a replica, as it has told Ray Serve; None if it is of another version, and about to be replaced."""
    try:
        return Address(**metadata)
    except TypeError:
        return None


def proof(token: str, who: str, *said: str) -> bytes:
    """That `who`, a gateway or a replica, knows the token, after both have said something that nobody could foresee."""
    return hmac.digest(token.encode(), " ".join((who, *said)).encode(), "sha256").hex().encode()


def notice_silence(writer: asyncio.StreamWriter) -> None:
    """Of a machine that is gone, or a connection that a firewall has forgotten: the kernel ends it then (tcp(7))."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {socket.TCP_KEEPIDLE: SILENT_AFTER, socket.TCP_KEEPINTVL: ASKED_EVERY, socket.TCP_KEEPCNT: ASKED_TIMES}
    options[socket.TCP_USER_TIMEOUT] = 1000 * (SILENT_AFTER + ASKED_EVERY * ASKED_TIMES)
    for option, value in options.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass
class _Gateway:
    writer: asyncio.StreamWriter
    waiting: list[Entry] = field(default_factory=list)


class DeltaSender:
    """Used from one event loop."""

    def __init__(self, on_gone: Callable[[str], None]) -> None:
        """`on_gone`: told the name of a gateway that reads no longer."""
        self._on_gone = on_gone
        self._token = secrets.token_hex(NAME_BYTES // 2)
        self._unauthenticated = 0
        self._gateways: dict[str, _Gateway] = {}
        self._arrival = asyncio.Condition()
        self._flushing = False

    async def start(self, host: str, context: ssl.SSLContext | None) -> Address:
        """Listen, on a port of the system's choice. `context`: encrypt with it."""
        patience = HELLO_TIMEOUT if context else None
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=context, ssl_handshake_timeout=patience)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    def put(self, gateway: str, number: int, delta: Delta | None, usage: Usage, end: GatewayError | bool = False) -> None:
        """For this gateway, unless it has gone."""
        if reader := self._gateways.get(gateway):
            used = (usage.prompt_tokens, usage.image_tokens, usage.cached_tokens, usage.completion_tokens)
            reader.waiting.append((number, delta, used, end))
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self._flush)

    async def reach(self, gateway: str) -> bool:
        """Whether this gateway listens, by now or in a moment."""
        if gateway in self._gateways:
            return True
        try:
            async with asyncio.timeout(HELLO_TIMEOUT), self._arrival:
                return await self._arrival.wait_for(lambda: gateway in self._gateways)
        except TimeoutError:
            return False

    def _flush(self) -> None:
        self._flushing = False
        for reader in self._gateways.values():
            if reader.waiting:
                frame = pickle.dumps(reader.waiting, pickle.HIGHEST_PROTOCOL)
                reader.waiting.clear()
                reader.writer.write(len(frame).to_bytes(4) + frame)
                if reader.writer.transport.get_write_buffer_size() > MOST_UNREAD:
                    reader.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if name := await self._greet(reader, writer):
                await self._keep(name, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """The name of the gateway, once it has proved to be one; empty if it has not."""
        if self._unauthenticated >= MAX_UNAUTHENTICATED:
            return ""
        self._unauthenticated += 1
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                challenge = secrets.token_hex(NAME_BYTES // 2)
                writer.write(challenge.encode())
                name = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
                question = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
                given = await reader.readexactly(PROOF_BYTES)
        finally:
            self._unauthenticated -= 1
        if not hmac.compare_digest(given, proof(self._token, "gateway", challenge, name, question)):
            return ""
        writer.write(proof(self._token, "replica", challenge, name, question))
        return name

    async def _keep(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until it has gone, or has come anew, for which it must have lost this connection."""
        notice_silence(writer)
        if old := self._gateways.pop(name, None):
            old.writer.transport.abort()
            self._on_gone(name)
        self._gateways[name] = gateway = _Gateway(writer)
        try:
            async with self._arrival:
                self._arrival.notify_all()
            await reader.read()  # nothing more comes, but the end
        finally:
            if self._gateways.get(name) is gateway:
                del self._gateways[name]
                self._on_gone(name)


def server_context() -> ssl.SSLContext | None:
    return _context(ssl.Purpose.CLIENT_AUTH)


def client_context() -> ssl.SSLContext | None:
    return _context(ssl.Purpose.SERVER_AUTH)


def _context(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """As in Ray, either side shows a certificate of the same authority, whatever host it names."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return context
