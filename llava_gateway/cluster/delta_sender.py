"""The replica's end of the delta connections: it sends deltas to the gateways that have asked for them.

There is one connection for each gateway, and one write for all the deltas that a step of the engine has produced for it. (Ray's own streams
take half a millisecond of CPU for each delta, at either end.) The gateway opens the connection. Then either end proves that it knows the
replica's token: the replica sends a challenge, the gateway its name, a question and its proof, and the replica its own proof. Messages
follow in frames: four bytes of length, and a pickled list of `DeltaMessage`.
"""

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
"""Seconds that a gateway has for its greeting."""
MAX_UNAUTHENTICATED = 1024
"""Connections that have not proved to be a gateway's yet. More are closed at once."""
MAX_UNREAD = 64 << 20
"""Bytes that may wait for a gateway to read them. A gateway with more is disconnected."""
NAME_BYTES = 32
"""The length of a gateway's name, of the replica's challenge and of the gateway's question, in hex digits."""
PROOF_BYTES = 64
"""The length of a proof, in hex digits."""
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 15, 5, 3
"""Of a silent connection: seconds until the kernel sends the first probe, seconds between probes, and probes until the connection ends."""

UsedTokens = tuple[int, int, int, int, int]
"""Prompt, image, video, cached and completion tokens."""
DeltaMessage = tuple[int, Delta | None, UsedTokens, GatewayError | bool]
"""The number of a request, its next delta, its usage so far, and its end.

The end is False while the request goes on, True after its last delta, or the error that it has ended with."""


@dataclass(frozen=True)
class Address:
    """Where a replica listens for gateways."""

    host: str
    port: int
    token: str
    """A secret of the replica and the gateways, which get it from Ray. Either end proves that it knows the token, and never sends it."""


def address_of(metadata: Mapping[str, Any]) -> Address | None:
    """Return the address of a replica. None: the replica runs another version of the gateway, and is about to be replaced.

    `metadata`: what the replica's `record_replica_metadata` has returned to Ray Serve.
    """
    try:
        return Address(**metadata)
    except TypeError:
        return None


def proof(token: str, role: str, *texts: str) -> bytes:
    """Return the proof that one end of a connection knows the token.

    `role`: "gateway" or "replica". `texts`: challenge, name and question. Either end has chosen one at random, so no proof can be replayed.
    """
    return hmac.digest(token.encode(), " ".join((role, *texts)).encode(), "sha256").hex().encode()


def enable_keepalive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel end the connection if the other machine is gone, or if a firewall has forgotten the connection. See tcp(7)."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        socket.TCP_KEEPIDLE: KEEPALIVE_IDLE,
        socket.TCP_KEEPINTVL: KEEPALIVE_INTERVAL,
        socket.TCP_KEEPCNT: KEEPALIVE_PROBES,
        socket.TCP_USER_TIMEOUT: 1000 * (KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES),
    }
    for option, value in options.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass
class _Connection:
    """The connection of one gateway, and the messages that the next write takes along."""

    writer: asyncio.StreamWriter
    messages: list[DeltaMessage] = field(default_factory=list)


class DeltaSender:
    """Listens for gateways, and sends them the deltas of their requests. Used from one event loop."""

    def __init__(self, on_disconnect: Callable[[str], None]) -> None:
        """`on_disconnect`: called with the name of a gateway whose connection has ended."""
        self._on_disconnect = on_disconnect
        self._token = secrets.token_hex(NAME_BYTES // 2)
        self._unauthenticated = 0
        self._connections: dict[str, _Connection] = {}
        """By the name of the gateway."""
        self._connected = asyncio.Condition()
        self._flush_scheduled = False

    async def start(self, host: str, context: ssl.SSLContext | None) -> Address:
        """Listen on a free port of `host`, and return the address. `context`: for encrypted connections; None: not encrypted."""
        handshake_timeout = HELLO_TIMEOUT if context else None
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=context, ssl_handshake_timeout=handshake_timeout)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    def send(self, gateway: str, number: int, delta: Delta | None, usage: Usage, end: GatewayError | bool = False) -> None:
        """Send a message to a gateway at the end of this turn of the event loop. Does nothing if the gateway is not connected.

        The parameters are as in `DeltaMessage`.
        """
        if connection := self._connections.get(gateway):
            used = (usage.prompt_tokens, usage.image_tokens, usage.video_tokens, usage.cached_tokens, usage.completion_tokens)
            connection.messages.append((number, delta, used, end))
            if not self._flush_scheduled:
                self._flush_scheduled = True
                asyncio.get_running_loop().call_soon(self._flush)

    async def wait_until_connected(self, gateway: str) -> bool:
        """Return True when a gateway is connected, or False if it is not within `HELLO_TIMEOUT` seconds."""
        if gateway in self._connections:
            return True
        try:
            async with asyncio.timeout(HELLO_TIMEOUT), self._connected:
                return await self._connected.wait_for(lambda: gateway in self._connections)
        except TimeoutError:
            return False

    def _flush(self) -> None:
        self._flush_scheduled = False
        for connection in self._connections.values():
            if connection.messages:
                frame = pickle.dumps(connection.messages, pickle.HIGHEST_PROTOCOL)
                connection.messages.clear()
                connection.writer.write(len(frame).to_bytes(4) + frame)
                if connection.writer.transport.get_write_buffer_size() > MAX_UNREAD:
                    connection.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if name := await self._greet(reader, writer):
                await self._hold(name, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Return the name of the gateway that has connected. Empty: the other end has not proved to be a gateway."""
        if self._unauthenticated >= MAX_UNAUTHENTICATED:
            return ""
        self._unauthenticated += 1
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                challenge = secrets.token_hex(NAME_BYTES // 2)
                writer.write(challenge.encode())
                name = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
                question = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
                received = await reader.readexactly(PROOF_BYTES)
        finally:
            self._unauthenticated -= 1
        if not hmac.compare_digest(received, proof(self._token, "gateway", challenge, name, question)):
            return ""
        writer.write(proof(self._token, "replica", challenge, name, question))
        return name

    async def _hold(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep the connection of a gateway until it ends.

        An older connection of the same gateway is closed: the gateway has lost it, otherwise it would not have connected again.
        """
        enable_keepalive(writer)
        if old := self._connections.pop(name, None):
            old.writer.transport.abort()
            self._on_disconnect(name)
        self._connections[name] = connection = _Connection(writer)
        try:
            async with self._connected:
                self._connected.notify_all()
            await reader.read()  # a gateway sends nothing after its greeting, so this returns at the end of the connection
        finally:
            if self._connections.get(name) is connection:
                del self._connections[name]
                self._on_disconnect(name)


def server_context() -> ssl.SSLContext | None:
    """Return the TLS context of a replica. None: Ray does not encrypt, so deltas are not encrypted either."""
    return _context(ssl.Purpose.CLIENT_AUTH)


def client_context() -> ssl.SSLContext | None:
    """Return the TLS context of a gateway. None: Ray does not encrypt, so deltas are not encrypted either."""
    return _context(ssl.Purpose.SERVER_AUTH)


def _context(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """Return a context made of the certificates that Ray's own variables name.

    As in Ray, either end shows a certificate of the same authority. The host name in the certificate is not checked. See
    https://docs.ray.io/en/latest/ray-core/configure.html#tls-authentication.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return context
