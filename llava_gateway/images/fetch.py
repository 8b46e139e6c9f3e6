"""Fetches the URLs of images and videos. Every redirect is checked, and each fetch is limited in bytes, in time and in CPU time."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from urllib.parse import quote, urljoin

import httpcore
import httpx

from llava_gateway import __version__
from llava_gateway.errors import InvalidImage, image_too_large
from llava_gateway.images.cache_control import CacheLifetime, cache_lifetime
from llava_gateway.images.network import BoundedStream, NetworkBackend, download_failed, tls_context
from llava_gateway.images.resolver import Resolver
from llava_gateway.images.url_policy import Address, check_addresses, check_host, check_literal, parse_url
from llava_gateway.settings import Settings

REDIRECTS = (301, 302, 303, 307, 308)
UNPACKED = ("gzip", "x-gzip", "deflate")
"""The codings that are decompressed. Some hosts store files in them and send them to clients that did not ask for them."""
REFUSED_CODINGS = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")
"""The other registered codings that change a body. Browsers ignore any other value, such as `none`, `utf-8` or `aws-chunked`."""
USER_AGENT = f"llava-gateway/{__version__}"


@dataclass(frozen=True, slots=True)
class Download:
    """The result of a fetch."""

    data: bytes | None
    """The file; None if the origin answered 304 (Not Modified)."""
    lifetime: CacheLifetime | None
    """None if the response must not be stored."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """The limits of fetches of one kind of file."""

    accept: str
    """The media types that an origin is asked for."""
    max_bytes: int
    timeout: float
    """The longest time of a fetch, in seconds."""
    downloads: int
    """The upper bound of fetches at the same time."""


class Fetcher:
    """Downloads images or videos, without cookies or persistent connections, and without proxies or credentials of the environment."""

    def __init__(self, settings: Settings) -> None:
        self.limits = FetchLimits("image/*", settings.max_image_mb << 20, settings.image_timeout, settings.image_downloads)
        self.max_redirects = settings.image_redirects
        self.hosts = settings.image_hosts
        self.networks = settings.allow_networks
        self.resolver = Resolver(settings.image_connect_timeout)
        self._proxy = _proxy(settings.image_proxy) if settings.image_proxy else None
        self._tls = tls_context()
        self._timeouts = {"connect": settings.image_connect_timeout} | dict.fromkeys(("read", "write"), settings.image_read_timeout)
        self._slots = asyncio.Semaphore(self.limits.downloads)
        self._turns = asyncio.Lock()

    def with_limits(self, limits: FetchLimits) -> "Fetcher":
        """Return a fetcher of another kind of file. Both share the resolver, the TLS context, and their turns on the event loop."""
        fetcher = copy(self)
        fetcher.limits = limits
        fetcher._slots = asyncio.Semaphore(limits.downloads)
        return fetcher

    async def fetch(self, url: str, conditional_headers: Mapping[str, str] | None = None) -> Download:
        """Fetch the file at `url`.

        `conditional_headers`: if given, the origin may answer 304 and send no file. Raises InvalidImage if the URL is refused or the
        download fails.
        """
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await self._follow(url, conditional_headers or {})
        except (TimeoutError, httpcore.TimeoutException):
            raise download_failed(f"took longer than {self.limits.timeout:g} s, or was silent for too long") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, OSError) as error:
            raise download_failed("could not be downloaded") from error
        except (httpx.InvalidURL, ValueError) as error:  # a name that is not valid IDNA, or a redirect to an invalid URL
            raise InvalidImage("The image URL, or the URL that it redirects to, is not valid.", code="invalid_image_url") from error

    async def close(self) -> None:
        """Cancel the lookups of host names."""
        await self.resolver.close()

    async def _follow(self, url: str, conditional_headers: Mapping[str, str]) -> Download:
        """Fetch `url` and follow redirects."""
        redirects: list[CacheLifetime | None] = []
        for _ in range(self.max_redirects + 1):
            check_host(parse_url(url), self.hosts)
            async with self._get(httpx.URL(url), {} if redirects else conditional_headers) as (response, headers):
                if response.status in REDIRECTS and (location := _location(response)):
                    redirects.append(cache_lifetime(headers))
                    url = urljoin(url, location)
                    continue
                if response.status == 304 and conditional_headers and not redirects:
                    return Download(None, cache_lifetime(headers))
                if response.status != 200:
                    raise download_failed(f"answered {response.status}")
                return Download(await self._read(response, headers), _shortest_lifetime([*redirects, cache_lifetime(headers)]))
        raise download_failed(f"redirects more than {self.max_redirects} times")

    @asynccontextmanager
    async def _get(self, url: httpx.URL, conditional_headers: Mapping[str, str]) -> AsyncIterator[tuple[httpcore.Response, httpx.Headers]]:
        """Send one GET request. Yield the response, whose body is not read yet, and its headers."""
        addresses = await self._addresses(url.raw_host.decode("ascii"))  # before a slot is taken: a silent name server must hold no slot
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = {
            "host": url.netloc.decode("ascii"),
            "user-agent": USER_AGENT,
            "accept": self.limits.accept,
            "accept-encoding": "identity",
        }
        async with (
            self._slots,
            httpcore.AsyncConnectionPool(self._tls, self._proxy, network_backend=NetworkBackend(addresses, self._turns)) as pool,
            pool.stream(
                "GET", target, headers=[*(headers | dict(conditional_headers)).items()], extensions={"timeout": self._timeouts}
            ) as response,
        ):
            yield response, httpx.Headers(response.headers)

    async def _addresses(self, host: str) -> list[Address]:
        """Return the addresses to connect to, after checking them.

        With a proxy these are the proxy's addresses: the proxy resolves the host's name and decides which networks may be reached.
        """
        if self._proxy is None:
            return check_addresses(await self.resolver.addresses(host), self.networks)
        check_literal(host, self.networks)
        return await self.resolver.addresses(self._proxy.url.host.decode("ascii"))

    async def _read(self, response: httpcore.Response, headers: httpx.Headers) -> bytes:
        """Return the body, decompressed. Raises InvalidImage if the body is too large, or has a coding that cannot be decompressed."""
        coding = _content_coding(headers)
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.limits.max_bytes:
            raise image_too_large(self.limits.max_bytes)
        stream = response.extensions["network_stream"]
        assert isinstance(stream, BoundedStream)
        stream.is_plain = "transfer-encoding" not in headers
        await stream.note_parsed()
        body = bytearray()
        async for part in response.aiter_stream():
            body += part
            if len(body) > self.limits.max_bytes:
                raise image_too_large(self.limits.max_bytes)
            await stream.note_parsed(len(part))
        return await asyncio.to_thread(_decompress, bytes(body), self.limits.max_bytes) if coding else bytes(body)


def _proxy(url: str) -> httpcore.Proxy:
    proxy = httpx.Proxy(url)
    return httpcore.Proxy(str(proxy.url), proxy.raw_auth)


def _location(response: httpcore.Response) -> str:
    """Return the redirect's target, or an empty string. Spaces and bytes beyond ASCII are percent-encoded, as browsers do it."""
    location = next((value for name, value in response.headers if name.lower() == b"location"), b"")
    return quote(location, safe=bytes(range(0x21, 0x7F)))


def _content_coding(headers: httpx.Headers) -> str:
    """Return the coding that the body must be decompressed from, or an empty string. Raises InvalidImage."""
    values = (value.strip().lower() for value in headers.get("content-encoding", "").split(","))
    codings = [value for value in values if value in UNPACKED + REFUSED_CODINGS]
    if len(codings) > 1 or not set(codings) <= set(UNPACKED):
        raise download_failed(f"answered with a body that is compressed ({', '.join(codings)[:100]}) although none was asked for")
    return codings[0] if codings else ""


def _decompress(body: bytes, max_bytes: int) -> bytes:
    """Return a body in gzip or deflate, which has a zlib header from some origins and none from others. Raises InvalidImage.

    A few hundred bytes can unpack to gigabytes, so no more than `max_bytes` bytes are decompressed.
    """
    for wbits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # 32: gzip or zlib, by the header
        decompressor = zlib.decompressobj(wbits)
        try:
            data = decompressor.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(data) > max_bytes:
            raise image_too_large(max_bytes)
        if decompressor.eof:
            return data
    raise download_failed("answered with a compressed body that is damaged")


def _shortest_lifetime(hops: list[CacheLifetime | None]) -> CacheLifetime | None:
    """Return the lifetime of a chain of redirects: the shortest lifetime of its responses.

    A chain has no validators, because a conditional request is possible for a single response only.
    """
    storable = [hop for hop in hops if hop is not None]
    if len(storable) < len(hops):
        return None
    return storable[0] if len(storable) == 1 else CacheLifetime(min(hop.seconds for hop in storable))
