"""Connections to the hosts of images: only checked addresses are dialled, and no host can occupy the event loop.

What a host sends is parsed on the event loop, so the parser's work is bounded, and not only the bytes: each header line, interim response
and chunk costs as much as many kilobytes of plain data.
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
DENSE_LINES = 384
"""Lines in one read (64 KiB) from which it is handed to the parser in pieces. Compressed images have 256 line feeds on average."""
DENSE_PIECE = 4096
MAX_UNPARSED = 256
"""Reads, lines and units of 128 bytes that may come before the next part of the response: a head has 256 lines or 32 KiB at most."""
TURN_PARTS = 64
"""Parts of a body after which a fetch lets others go on; parsing them takes about 2 ms. Where they are large, reading them does."""
LARGE_PART = 4096
TURN_PAUSE = 0.002
"""Seconds in which no fetch goes on: all of them together get about half of the event loop."""
CHECKED_PARTS = 1024
MIN_MEAN_BYTES = 64
"""Smallest mean size of so many parts in a row. Applications that send a compressed file line by line reach 256."""
MAX_DIALS = 4
"""Addresses of one host that are tried."""


def tls_context() -> ssl.SSLContext:
    """Verifies by certifi's authorities. What lets a server make its clients compute is off: renegotiation, and Diffie-Hellman in groups
    of the server's choice."""
    context = httpx.create_ssl_context(trust_env=False)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES")
    return context


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Dials the addresses that it was given, whatever the host is called: those that were checked (DNS rebinding)."""

    def __init__(self, addresses: Sequence[Address], turns: asyncio.Lock) -> None:
        """`turns`: one for all fetches."""
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
        """To the first address that answers. Each but the last gets half of the time that is left."""
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
    """A connection whose bytes reach the parser in pieces of a few milliseconds' work, and no more of them than a plain answer needs.

    The reader of the response calls `parsed` for its head and for each part of its body.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, turns: asyncio.Lock) -> None:
        self._stream = stream
        self._turns = turns
        self._held = b""
        self._unparsed = 0
        self._parts = 0
        self._bytes = 0
        self._bytes_at_turn = 0
        self._bytes_at_check = 0
        self.plain = False
        """The rest is a body that the parser need not search for lines."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unparsed > MAX_UNPARSED:
            raise download_failed("answered with too long a head, or in too many small pieces")
        if self.plain:
            return self._take_held() or await self._stream.read(PLAIN_READ_BYTES, timeout)
        if not self._held:
            self._held = await self._stream.read(max_bytes, timeout)
        lines = self._held.count(b"\n")
        if lines <= DENSE_LINES:
            piece = self._take_held()
        else:
            await self._take_turn()
            piece = self._take_held(DENSE_PIECE)
            lines = piece.count(b"\n")
        self._unparsed += 1 + len(piece) // 128 + lines
        return piece

    async def parsed(self, size: int = 0) -> None:
        """The parser has returned the head, or so many bytes of the body. InvalidImage if the body comes in too many small parts."""
        self._unparsed = 0
        self._parts += 1
        self._bytes += size
        if self._parts % TURN_PARTS == 0:
            if self._bytes - self._bytes_at_turn < TURN_PARTS * LARGE_PART:
                await self._take_turn()
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

    def _take_held(self, size: int | None = None) -> bytes:
        piece, self._held = self._held[:size], self._held[size:] if size else b""
        return piece

    async def _take_turn(self) -> None:
        """One fetch at a time goes on, so that a pass of the event loop waits for one piece, however many there are."""
        async with self._turns:
            await asyncio.sleep(TURN_PAUSE)


def download_failed(why: str) -> InvalidImage:
    return InvalidImage(f"The image URL {why}.", code="failed_to_download_image")
