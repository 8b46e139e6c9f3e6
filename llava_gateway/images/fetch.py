"""Fetching an image URL: resolve once, check every address, dial the checked one, on every hop; bounded in bytes and in time."""

import asyncio
import socket
from collections.abc import Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

import httpx

from llava_gateway.errors import InvalidImage
from llava_gateway.images import too_large
from llava_gateway.images.address import is_allowed, parse_url
from llava_gateway.settings import Network
from llava_gateway.version import __version__

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = f"llava-gateway/{__version__}"


class Fetcher:
    """Downloads images. No cookies, no proxies or credentials from the environment, no connection kept."""

    def __init__(self, *, max_bytes: int, timeout: float, allow_networks: Sequence[Network] = ()) -> None:
        self.max_bytes = max_bytes
        self.timeout = timeout
        self._client = httpx.AsyncClient(
            transport=_CheckedTransport(allow_networks),
            trust_env=False,
            timeout=timeout,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # what one client's fetch is told is not for the next
            headers={"user-agent": USER_AGENT, "accept": "image/*", "accept-encoding": "identity"},
        )

    async def fetch(self, url: str, param: str) -> bytes:
        """The bytes behind `url`. InvalidImage, naming `param`, if they cannot or must not be had."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self._follow(url, param)
        except (TimeoutError, httpx.TimeoutException):
            raise _failed(f"took longer than {self.timeout:g} s", param) from None
        except _AddressRefused:
            raise InvalidImage(
                "The image URL leads to a network that this server does not fetch from.", param=param, code="invalid_image_url"
            ) from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _failed("could not be downloaded", param) from error
        except (httpx.InvalidURL, ValueError) as error:  # names that are no IDNA, redirects to what is no URL
            raise InvalidImage(
                "The image URL, or what it redirects to, is not a valid URL.", param=param, code="invalid_image_url"
            ) from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _follow(self, url: str, param: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            parse_url(url, param)
            async with self._client.stream("GET", url) as response:
                if response.status_code in REDIRECTS and (location := response.headers.get("location")):
                    url = urljoin(url, location)
                    continue
                if response.status_code != 200:
                    raise _failed(f"answered {response.status_code}", param)
                return await self._read(response, param)
        raise _failed(f"redirects more than {MAX_REDIRECTS} times", param)

    async def _read(self, response: httpx.Response, param: str) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":  # a few hundred bytes can unpack to gigabytes
            raise _failed("answered with a compressed body although none was asked for", param)
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise too_large(self.max_bytes, param)
        body = bytearray()
        async for chunk in response.aiter_raw(65536):
            body += chunk
            if len(body) > self.max_bytes:
                raise too_large(self.max_bytes, param)
        return bytes(body)


class _AddressRefused(Exception):
    pass


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Dials only addresses that were checked, by number, with the name kept for `Host` and TLS."""

    def __init__(self, allow_networks: Sequence[Network]) -> None:
        self.allow_networks = allow_networks
        self._inner = httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        host = url.raw_host.decode("ascii")
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


def _failed(why: str, param: str) -> InvalidImage:
    return InvalidImage(f"The image URL {why}.", param=param, code="failed_to_download_image")
