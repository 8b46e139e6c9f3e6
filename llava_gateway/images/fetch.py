"""Fetching an image URL: resolve once, check every address, dial the checked one, on every hop; bounded in bytes and in time."""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

import httpx

from llava_gateway.errors import InvalidImage
from llava_gateway.images import too_large
from llava_gateway.images.address import check_host, is_allowed, parse_url
from llava_gateway.images.freshness import Freshness, freshness
from llava_gateway.settings import Network, Settings
from llava_gateway.version import __version__

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
        self._places = asyncio.Semaphore(settings.image_downloads)
        self._client = httpx.AsyncClient(
            transport=_CheckedTransport(settings.allow_networks, settings.image_proxy),
            trust_env=False,
            timeout=httpx.Timeout(settings.image_read_timeout, connect=settings.image_connect_timeout, pool=None),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # what one client's fetch is told is not for the next
            headers={"user-agent": USER_AGENT, "accept": "image/*", "accept-encoding": "identity"},
        )

    async def fetch(self, url: str, conditions: Mapping[str, str] | None = None) -> Download:
        """What is behind `url`. InvalidImage if it cannot or must not be had. With `conditions` it may be as it was."""
        try:
            async with asyncio.timeout(self.timeout), self._places:
                return await self._follow(url, conditions or {})
        except (TimeoutError, httpx.TimeoutException):
            raise _failed(f"took longer than {self.timeout:g} s, or was silent for too long") from None
        except _AddressRefused:
            raise InvalidImage("The image URL leads to a network that this server does not fetch from.", code="invalid_image_url") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _failed("could not be downloaded") from error
        except (httpx.InvalidURL, ValueError) as error:  # names that are no IDNA, redirects to what is no URL
            raise InvalidImage("The image URL, or what it redirects to, is not a valid URL.", code="invalid_image_url") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _follow(self, url: str, conditions: Mapping[str, str]) -> Download:
        redirected: list[Freshness | None] = []
        for _ in range(self.max_redirects + 1):
            check_host(parse_url(url), self.hosts)
            async with self._client.stream("GET", url, headers={} if redirected else dict(conditions)) as response:
                if response.status_code in REDIRECTS and (location := response.headers.get("location")):
                    redirected.append(freshness(response.headers))
                    url = urljoin(url, location)
                    continue
                if response.status_code == 304 and conditions and not redirected:
                    return Download(None, freshness(response.headers))
                if response.status_code != 200:
                    raise _failed(f"answered {response.status_code}")
                return Download(await self._read(response), _least([*redirected, freshness(response.headers)]))
        raise _failed(f"redirects more than {self.max_redirects} times")

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":  # a few hundred bytes can unpack to gigabytes
            raise _failed("answered with a compressed body although none was asked for")
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise too_large(self.max_bytes)
        body = bytearray()
        async for chunk in response.aiter_raw(65536):
            body += chunk
            if len(body) > self.max_bytes:
                raise too_large(self.max_bytes)
        return bytes(body)


class _AddressRefused(Exception):
    pass


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Dials only addresses that were checked, by number, with the name kept for `Host` and TLS. Through a proxy names go unresolved, since
    it is the proxy that resolves and dials them: what they may lead to is the proxy's to say."""

    def __init__(self, allow_networks: tuple[Network, ...], proxy: str) -> None:
        self.allow_networks = allow_networks
        self.proxied = bool(proxy)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(trust_env=False, limits=limits, proxy=proxy or None)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        host = url.raw_host.decode("ascii")
        if self.proxied:
            self._check_literal(host)
            return await self._inner.handle_async_request(request)
        address = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
        extensions: dict[str, Any] = {**request.extensions, "sni_hostname": host}
        return await self._inner.handle_async_request(
            httpx.Request(request.method, url.copy_with(host=address), headers=request.headers, extensions=extensions)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _resolve(self, host: str, port: int) -> str:
        """The first of the host's addresses, once all of them have passed: a mixed answer is refused whole."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
        if not addresses or not all(is_allowed(address, self.allow_networks) for address in addresses):
            raise _AddressRefused
        return str(addresses[0])

    def _check_literal(self, host: str) -> None:
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            return
        if not is_allowed(address, self.allow_networks):
            raise _AddressRefused


def _least(hops: list[Freshness | None]) -> Freshness | None:
    """Of a chain of redirects: what the shortest-lived hop allows. Only a direct answer can be asked about again."""
    kept = [hop for hop in hops if hop is not None]
    if len(kept) < len(hops):
        return None
    return kept[0] if len(kept) == 1 else Freshness(min(hop.seconds for hop in kept))


def _failed(why: str) -> InvalidImage:
    return InvalidImage(f"The image URL {why}.", code="failed_to_download_image")
