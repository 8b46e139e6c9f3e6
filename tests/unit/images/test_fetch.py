"""Fetches over real sockets, from a local origin and with a local name server."""

import asyncio
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

import pytest
from helpers import nameserver
from helpers.origin import GRID, Origin

from llava_gateway.demo.images import draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import USER_AGENT, Fetcher
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow

LOOPBACK = [ip_network("127.0.0.0/8")]
PATIENT: dict[str, Any] = {"image_timeout": 120, "image_connect_timeout": 120, "image_read_timeout": 120}
"""Timeouts in seconds that do not expire on a busy machine."""
Names = Callable[..., tuple[str, ...]]


def fetch(*urls: str, networks: Any = LOOPBACK, servers: tuple[str, ...] = (), **settings: Any) -> bytes:
    """Fetch the URLs and return the file at the last one."""

    async def run() -> bytes:
        defaults: dict[str, Any] = PATIENT | {"max_image_mb": 1, "allow_networks": tuple(networks)}
        fetcher = Fetcher(Settings(**defaults | settings))
        fetcher.resolver.servers = servers
        try:
            for url in urls:
                data = (await fetcher.fetch(url)).data
            assert data is not None
            return data
        finally:
            await fetcher.close()

    return asyncio.run(run())


@pytest.fixture
def names() -> Iterator[Names]:
    """A function that defines the addresses of the host `made.up`, one list for each lookup. It returns the name servers."""
    with nameserver.running() as server:

        def define(*answers: list[str]) -> tuple[str, ...]:
            server.define("made.up", *answers)
            return (server.address,)

        yield define


def test_an_image_is_downloaded_unchanged(origin: Origin) -> None:
    assert fetch(f"{origin.url}/picture") == encode(draw(GRID))
    assert origin.requests[-1][1]["user-agent"] == USER_AGENT


def test_a_private_address_gets_no_request_unless_it_is_allowed(origin: Origin) -> None:
    before = len(origin.requests)
    with pytest.raises(InvalidImage) as refusal:
        fetch(f"{origin.url}/picture", networks=[])
    assert refusal.value.code == "invalid_image_url"
    assert len(origin.requests) == before


def test_a_name_with_a_public_and_a_private_address_is_refused(origin: Origin, names: Names) -> None:
    servers = names(["1.1.1.1", "10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/picture", servers=servers)


def test_a_name_is_not_looked_up_again_after_the_check(origin: Origin, names: Names) -> None:
    """A second lookup could return another address (DNS rebinding)."""
    servers = names(["127.0.0.1"], ["10.0.0.1"])
    assert fetch(f"http://made.up:{origin.server_port}/picture", servers=servers) == encode(draw(GRID))
    assert origin.requests[-1][1]["host"] == f"made.up:{origin.server_port}"


def test_the_address_of_each_redirect_is_checked(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"], ["10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/redirect", servers=servers)


@pytest.mark.parametrize(
    "path",
    [
        *(f"/coded/{coding}/plain" for coding in ("identity", "", "none", "NONE", "utf-8", "aws-chunked", "identity, aws-chunked", "br2")),
        *(f"/coded/{coding}/gzip" for coding in ("gzip", "GZip", "x-gzip", "aws-chunked, gzip", "identity, gzip")),
        *(f"/coded/deflate/{name}" for name in ("zlib", "raw")),
    ],
)
def test_content_encoding_that_browsers_accept_does_not_refuse_the_image(origin: Origin, path: str) -> None:
    assert fetch(origin.url + quote(path)) == encode(draw(GRID))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/coded/gzip, gzip/twice", "compressed"),
        ("/coded/gzip, gzip/bomb-twice", "compressed"),
        ("/coded/br/plain", "compressed (br"),
        ("/coded/zstd/plain", "compressed"),
        ("/coded/gzip/damaged", "damaged"),
        ("/coded/gzip/plain", "damaged"),
        ("/coded/gzip/bomb", "larger than 1 MiB"),
    ],
)
def test_body_that_cannot_be_decompressed_within_the_limit_is_refused(origin: Origin, path: str, message: str) -> None:
    with pytest.raises(InvalidImage, match=re.escape(message)):
        fetch(origin.url + quote(path))


def test_redirect_with_spaces_and_raw_utf_8_is_followed(origin: Origin) -> None:
    assert fetch(f"{origin.url}/to-spaces") == encode(draw(GRID))


@pytest.mark.parametrize("path", ["/to-host-with-a-space", "/to-unicode-and-private"])
def test_redirect_that_must_be_encoded_is_checked_like_any_other(origin: Origin, path: str) -> None:
    before = len(origin.requests)
    with pytest.raises(InvalidImage) as refusal:
        fetch(origin.url + path)
    assert refusal.value.code == "invalid_image_url"
    assert len(origin.requests) == before + 1


def test_cookies_are_not_stored(origin: Origin) -> None:
    fetch(f"{origin.url}/cookie", f"{origin.url}/picture")
    assert "cookie" not in origin.requests[-1][1]


@pytest.mark.parametrize("path", ["/to-nonsense", "/to-unicode"])
def test_a_redirect_to_an_invalid_url_is_refused(origin: Origin, path: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        fetch(origin.url + path)
    assert refusal.value.code == "invalid_image_url"


@pytest.mark.parametrize("host", ["xn--a", "xn--.com", "xn--0.invalid"])
def test_a_name_that_is_not_valid_idna_is_refused(host: str) -> None:
    with pytest.raises(InvalidImage):
        fetch(f"http://{host}/")


def test_a_file_over_the_limit_is_refused(origin: Origin) -> None:
    with pytest.raises(InvalidImage, match="larger"):
        fetch(f"{origin.url}/large")


def test_a_host_that_is_not_listed_is_refused(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"])
    url = f"http://made.up:{origin.server_port}/picture"
    assert fetch(url, servers=servers, image_hosts=("made.up",))
    with pytest.raises(InvalidImage, match="host"):
        fetch(url, servers=servers, image_hosts=("*.made.up",))
    before = len(origin.requests)
    with pytest.raises(InvalidImage, match="no URLs"):
        fetch(url, servers=servers, image_hosts=())
    assert len(origin.requests) == before


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"])
    with pytest.raises(InvalidImage, match="host"):
        fetch(f"http://made.up:{origin.server_port}/to-private", servers=servers, image_hosts=("made.up",))


def test_a_proxy_gets_the_whole_url_and_no_private_address(origin: Origin) -> None:
    """The proxy resolves the host name. A literal private address is refused before the proxy gets it."""
    assert fetch("http://pictures.example/picture", image_proxy=origin.url) == encode(draw(GRID))
    assert origin.requests[-1][0] == "http://pictures.example/picture"
    before = len(origin.requests)
    with pytest.raises(InvalidImage, match="network"):
        fetch("http://10.0.0.1/picture", image_proxy=origin.url)
    assert len(origin.requests) == before


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("/silent", {"image_read_timeout": 0.3}),
        ("/drip", {"image_timeout": 1}),
        ("/redirect", {"image_redirects": 0}),
        ("/short", {}),
    ],
)
def test_a_slow_or_endless_download_is_given_up(origin: Origin, path: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage) as refusal:
        fetch(origin.url + path, **settings)
    assert refusal.value.code == "failed_to_download_image"


def test_a_body_of_unknown_length_is_read_to_its_end(origin: Origin) -> None:
    assert fetch(f"{origin.url}/chunked") == encode(draw(GRID))


def test_no_more_downloads_run_at_once_than_are_allowed(origin: Origin) -> None:
    """Four downloads that take 0.3 s each, two at a time."""

    async def run() -> float:
        fetcher = Fetcher(Settings(allow_networks=tuple(LOOPBACK), image_downloads=2, **PATIENT))
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(fetcher.fetch(f"{origin.url}/slow") for _ in range(4)))
        await fetcher.close()
        return asyncio.get_running_loop().time() - start

    assert asyncio.run(run()) > 0.55
