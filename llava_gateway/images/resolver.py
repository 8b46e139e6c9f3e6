"""Resolves host names to addresses with c-ares.

c-ares reads /etc/resolv.conf and /etc/hosts, queries the name servers, and caches answers for their time to live.
"""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import aiodns
import pycares

from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.images.url_policy import Address

FLAGS = pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_IGNTC
"""Answers are limited to one UDP datagram. Over TCP a hostile name server could send thousands of addresses."""
MAX_ADDRESSES = 256
"""The greatest number of addresses of a name. Each address is checked, and one datagram may hold thousands."""
MAX_CACHED = 1000
"""The number of lookups after which the cache is dropped. c-ares limits its cache by time to live, not by size."""


class Resolver:
    """Resolves names without threads. Lookups run independently; concurrent lookups of one name are shared. Used from one event loop."""

    def __init__(self, timeout: float, servers: Sequence[str] = ()) -> None:
        """`timeout`: of a lookup, in seconds. `servers`: name servers as `address:port`; if empty, those of /etc/resolv.conf."""
        self.timeout = timeout
        self.servers = servers
        self._running: SingleFlight[list[Address]] = SingleFlight()
        self._client: aiodns.DNSResolver | None = None
        self._lookups = 0

    async def addresses(self, host: str) -> list[Address]:
        """Return the addresses of a name. An address as `host` is returned as it is.

        Raises OSError if the name has no address, and TimeoutError.
        """
        try:
            return [ip_address(host)]
        except ValueError:
            return await self._running.do(host, lambda: self._look_up(host))

    async def close(self) -> None:
        """Cancel the lookups."""
        if self._client:
            await self._client.close()

    async def _look_up(self, host: str) -> list[Address]:
        client = self._get_client()  # a client that has been replaced closes itself after its last lookup
        try:
            async with asyncio.timeout(self.timeout):
                found = await client.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            raise socket.gaierror(*error.args) from None
        if len(found.nodes) > MAX_ADDRESSES:
            raise socket.gaierror(f"{host} has more than {MAX_ADDRESSES} addresses")
        return [ip_address(node.addr[0].decode()) for node in found.nodes]

    def _get_client(self) -> aiodns.DNSResolver:
        if self._client is None or self._lookups >= MAX_CACHED:
            self._client = aiodns.DNSResolver(self.servers, timeout=self.timeout / 3, tries=3, flags=FLAGS)
            self._lookups = 0
        self._lookups += 1
        return self._client
