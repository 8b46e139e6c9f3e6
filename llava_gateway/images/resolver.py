"""Host names to addresses. c-ares reads /etc/resolv.conf and /etc/hosts, asks the name servers, and keeps answers for their lifetime."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import aiodns
import pycares

from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.images.url_policy import Address

FLAGS = pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_IGNTC
"""One UDP datagram is the whole answer: over TCP a hostile name server could send thousands of addresses."""
MAX_ADDRESSES = 256
"""Of a name; each of them is checked. One datagram may hold thousands."""
MAX_CACHED = 1000
"""Lookups after which the cache is dropped. c-ares bounds its cache by time to live, not by size."""


class Resolver:
    """For one event loop. Lookups run independently of one another, without threads; equal names are looked up once at a time."""

    def __init__(self, timeout: float, servers: Sequence[str] = ()) -> None:
        """`servers`: name servers as `address:port`; none: those of /etc/resolv.conf."""
        self.timeout = timeout
        self.servers = servers
        self._running: SingleFlight[list[Address]] = SingleFlight()
        self._client: aiodns.DNSResolver | None = None
        self._lookups = 0

    async def addresses(self, host: str) -> list[Address]:
        """Of a name, or the address itself. Raises OSError if the name has none, TimeoutError."""
        try:
            return [ip_address(host)]
        except ValueError:
            return await self._running.do(host, lambda: self._look_up(host))

    async def close(self) -> None:
        if self._client:
            await self._client.close()

    async def _look_up(self, host: str) -> list[Address]:
        client = self._next_client()  # a client that has been replaced closes itself after its last lookup
        try:
            async with asyncio.timeout(self.timeout):
                found = await client.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            raise socket.gaierror(*error.args) from None
        if len(found.nodes) > MAX_ADDRESSES:
            raise socket.gaierror(f"{host} has more than {MAX_ADDRESSES} addresses")
        return [ip_address(node.addr[0].decode()) for node in found.nodes]

    def _next_client(self) -> aiodns.DNSResolver:
        if self._client is None or self._lookups >= MAX_CACHED:
            self._client = aiodns.DNSResolver(self.servers, timeout=self.timeout / 3, tries=3, flags=FLAGS)
            self._lookups = 0
        self._lookups += 1
        return self._client
