"""Connections to the hosts of images. Only checked addresses are dialled, and no host can occupy the event loop.

The responses are parsed on the event loop. Therefore not only the bytes are limited but also the parser's work: each header line, interim
response and chunk costs as much as many kilobytes of plain data.
"""

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import httpcore
import httpx

from llava_gateway.errors import InvalidImage
from llava_gateway.images.url_policy import Address

PLAIN_READ_BYTES = 256 << 10
"""The number of bytes that are read at once from a body without chunks."""
DENSE_LINES = 384
"""A read (64 KiB) with more lines than this is handed to the parser in pieces. Compressed images have 256 line feeds on average."""
DENSE_PIECE = 4096
"""The size of such a piece, in bytes."""
MAX_UNPARSED = 256
"""The greatest sum of reads, lines and units of 128 bytes between two parts of the response.

A response head is therefore limited to 256 lines or 32 KiB."""
TURN_PARTS = 64
"""The number of parts of a body after which a fetch waits for its turn, so that other fetches can continue. Parsing them takes 2 ms."""
LARGE_PART = 4096
"""A body whose parts have at least this mean size, in bytes, need not wait for its turn: reading such parts gives way to other fetches."""
TURN_PAUSE = 0.002
"""The pause in each turn, in seconds. All fetches together use about half of the event loop's time."""
CHECKED_PARTS = 1024
"""The number of consecutive parts whose mean size is checked."""
MIN_MEAN_BYTES = 64
"""The smallest allowed mean size, in bytes. Applications that send a compressed file line by line reach 256."""
MAX_DIALS = 4
"""The number of addresses of one host that are tried."""


def tls_context() -> ssl.SSLContext:
    """Return a TLS context that verifies certificates with certifi's authorities.

    Renegotiation is disabled, and so is Diffie-Hellman in groups of the server's choice: both let a server make its clients compute.
    """
    context = httpx.create_ssl_context(trust_env=False)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES")
    return context


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses, whatever the host name is.

    The addresses were checked before. A second lookup of the name could return other addresses (DNS rebinding).
    """

    def __init__(self, addresses: Sequence[Address], turns: asyncio.Lock) -> None:
        """`turns`: a lock that all fetches share."""
        self.addresses = addresses
        self._turns = turns
        self._dialer = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers. Each address except the last gets half of the remaining time."""
        assert timeout is not None
        *others, last = self.addresses[:MAX_DIALS]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._dial(address, port, (deadline - loop.time()) / 2)
        return await self._dial(last, port, deadline - loop.time())

    async def _dial(self, address: Address, port: int, timeout: float) -> httpcore.AsyncNetworkStream:
        return BoundedStream(await self._dialer.connect_tcp(str(address), port, timeout), self._turns)


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection that limits the parser's work.

    The bytes reach the parser in pieces that take a few milliseconds each, and in no more pieces than an ordinary response needs. The
    reader of the response calls `note_parsed` for the head and for each part of the body.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, turns: asyncio.Lock) -> None:
        self._stream = stream
        self._turns = turns
        self._buffer = b""
        self._unparsed = 0
        self._parts = 0
        self._bytes = 0
        self._bytes_at_turn = 0
        self._bytes_at_check = 0
        self.is_plain = False
        """Whether the rest is a body in which the parser does not search for lines."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unparsed > MAX_UNPARSED:
            raise download_failed("answered with too long a head, or in too many small pieces")
        if self.is_plain:
            return self._take_buffered() or await self._stream.read(PLAIN_READ_BYTES, timeout)
        if not self._buffer:
            self._buffer = await self._stream.read(max_bytes, timeout)
        lines = self._buffer.count(b"\n")
        if lines <= DENSE_LINES:
            piece = self._take_buffered()
        else:
            await self._wait_for_turn()
            piece = self._take_buffered(DENSE_PIECE)
            lines = piece.count(b"\n")
        self._unparsed += 1 + len(piece) // 128 + lines
        return piece

    async def note_parsed(self, size: int = 0) -> None:
        """Note that the parser has returned the head, or `size` bytes of the body.

        Raises InvalidImage if the body comes in too many small parts.
        """
        self._unparsed = 0
        self._parts += 1
        self._bytes += size
        if self._parts % TURN_PARTS == 0:
            if self._bytes - self._bytes_at_turn < TURN_PARTS * LARGE_PART:
                await self._wait_for_turn()
            self._bytes_at_turn = self._bytes
        if self._parts % CHECKED_PARTS == 0:
            if self._bytes - self._bytes_at_check < CHECKED_PARTS * MIN_MEAN_BYTES:
                raise download_failed("answered in too many small pieces")
            self._bytes_at_check = self._bytes

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._turns)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _take_buffered(self, size: int | None = None) -> bytes:
        piece, self._buffer = self._buffer[:size], self._buffer[size:] if size else b""
        return piece

    async def _wait_for_turn(self) -> None:
        """Wait until this fetch may continue.

        One fetch continues at a time. Each cycle of the event loop therefore parses one piece, however many fetches there are.
        """
        async with self._turns:
            await asyncio.sleep(TURN_PAUSE)


def download_failed(reason: str) -> InvalidImage:
    """Return the error for a download that failed. `reason`: completes a sentence that begins with \"The image URL\"."""
    return InvalidImage(f"The image URL {reason}.", code="failed_to_download_image")
