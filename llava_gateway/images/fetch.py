"""Fetching an image URL: every hop is checked, and bounded in bytes, in time and in work."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import httpcore
import httpx

from llava_gateway import __version__
from llava_gateway.errors import InvalidImage, image_too_large
from llava_gateway.images.cache_control import Freshness, freshness
from llava_gateway.images.network import BoundedStream, NetworkBackend, download_failed, tls_context
from llava_gateway.images.resolver import Resolver
from llava_gateway.images.url_policy import Address, check_addresses, check_host, check_literal, parse_url
from llava_gateway.settings import Settings

REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = f"llava-gateway/{__version__}"


@dataclass(frozen=True, slots=True)
class Download:
    data: bytes | None
    """None: as it was when `conditions` were learnt (304)."""
    freshness: Freshness | None
    """None: not to be kept."""


class Fetcher:
    """Downloads images. No cookies, no proxies or credentials from the environment, no connection kept."""

    def __init__(self, settings: Settings) -> None:
        self.max_bytes = settings.max_image_mb << 20
        self.timeout = settings.image_timeout
        self.max_redirects = settings.image_redirects
        self.hosts = settings.image_hosts
        self.networks = settings.allow_networks
        self.resolver = Resolver(settings.image_connect_timeout)
        self._proxy = _proxy(settings.image_proxy) if settings.image_proxy else None
        self._tls = tls_context()
        self._timeouts = {"connect": settings.image_connect_timeout} | dict.fromkeys(("read", "write"), settings.image_read_timeout)
        self._slots = asyncio.Semaphore(settings.image_downloads)
        self._turns = asyncio.Lock()

    async def fetch(self, url: str, conditions: Mapping[str, str] | None = None) -> Download:
        """What is behind `url`. InvalidImage if it cannot or must not be had. With `conditions` it may be as it was."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._follow(url, conditions or {})
        except (TimeoutError, httpcore.TimeoutException):
            raise download_failed(f"took longer than {self.timeout:g} s, or was silent for too long") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, OSError) as error:
            raise download_failed("could not be downloaded") from error
        except (httpx.InvalidURL, ValueError) as error:  # names that are no IDNA, redirects to what is no URL
            raise InvalidImage("The image URL, or what it redirects to, is not a valid URL.", code="invalid_image_url") from error

    async def close(self) -> None:
        await self.resolver.close()

    async def _follow(self, url: str, conditions: Mapping[str, str]) -> Download:
        redirected: list[Freshness | None] = []
        for _ in range(self.max_redirects + 1):
            check_host(parse_url(url), self.hosts)
            async with self._get(httpx.URL(url), {} if redirected else conditions) as (response, headers):
                if response.status in REDIRECTS and (location := headers.get("location")):
                    redirected.append(freshness(headers))
                    url = urljoin(url, location)
                    continue
                if response.status == 304 and conditions and not redirected:
                    return Download(None, freshness(headers))
                if response.status != 200:
                    raise download_failed(f"answered {response.status}")
                return Download(await self._read(response, headers), _least([*redirected, freshness(headers)]))
        raise download_failed(f"redirects more than {self.max_redirects} times")

    @asynccontextmanager
    async def _get(self, url: httpx.URL, conditions: Mapping[str, str]) -> AsyncIterator[tuple[httpcore.Response, httpx.Headers]]:
        addresses = await self._addresses(url.raw_host.decode("ascii"))  # before a slot is taken, so a silent name server holds none
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = {"host": url.netloc.decode("ascii"), "user-agent": USER_AGENT, "accept": "image/*", "accept-encoding": "identity"}
        async with (
            self._slots,
            httpcore.AsyncConnectionPool(self._tls, self._proxy, network_backend=NetworkBackend(addresses, self._turns)) as pool,
            pool.stream("GET", target, headers=[*(headers | dict(conditions)).items()], extensions={"timeout": self._timeouts}) as response,
        ):
            yield response, httpx.Headers(response.headers)

    async def _addresses(self, host: str) -> list[Address]:
        """The addresses to dial. With a proxy they are its own: it resolves names, and decides which networks they may lead to."""
        if self._proxy is None:
            return check_addresses(await self.resolver.addresses(host), self.networks)
        check_literal(host, self.networks)
        return await self.resolver.addresses(self._proxy.url.host.decode("ascii"))

    async def _read(self, response: httpcore.Response, headers: httpx.Headers) -> bytes:
        if headers.get("content-encoding", "identity") != "identity":  # a few hundred bytes can unpack to gigabytes
            raise download_failed("answered with a compressed body although none was asked for")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise image_too_large(self.max_bytes)
        stream = response.extensions["network_stream"]
        assert isinstance(stream, BoundedStream)
        stream.plain = "transfer-encoding" not in headers
        await stream.parsed()
        body = bytearray()
        async for part in response.aiter_stream():
            body += part
            if len(body) > self.max_bytes:
                raise image_too_large(self.max_bytes)
            await stream.parsed(len(part))
        return bytes(body)


def _proxy(url: str) -> httpcore.Proxy:
    proxy = httpx.Proxy(url)
    return httpcore.Proxy(str(proxy.url), proxy.raw_auth)


def _least(hops: list[Freshness | None]) -> Freshness | None:
    """Of a chain of redirects: what the shortest-lived hop allows. Only a direct answer can be asked about again."""
    kept = [hop for hop in hops if hop is not None]
    if len(kept) < len(hops):
        return None
    return kept[0] if len(kept) == 1 else Freshness(min(hop.seconds for hop in kept))
