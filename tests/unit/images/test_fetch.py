"""Fetching over real sockets from a real origin; names are those of a real name server."""

import asyncio
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from helpers import nameserver
from helpers.origin import GRID, Origin

from llava_gateway.demo.images import draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import USER_AGENT, Fetcher
from llava_gateway.settings import Settings

LOOPBACK = [ip_network("127.0.0.0/8")]
Names = Callable[..., tuple[str, ...]]


def fetch(*urls: str, networks: Any = LOOPBACK, servers: tuple[str, ...] = (), **settings: Any) -> bytes:
    """What the last of the URLs gives."""

    async def run() -> bytes:
        defaults = {"image_timeout": 2, "max_image_mb": 1, "allow_networks": tuple(networks)}
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
    """Gives a made-up host name its addresses, another list each time it is asked for."""
    with nameserver.running() as server:

        def define(*answers: list[str]) -> tuple[str, ...]:
            server.define("made.up", *answers)
            return (server.address,)

        yield define


def test_a_picture(origin: Origin) -> None:
    assert fetch(f"{origin.url}/picture") == encode(draw(GRID))
    assert origin.requests[-1][1]["user-agent"] == USER_AGENT


def test_private_without_permission(origin: Origin) -> None:
    before = len(origin.requests)
    with pytest.raises(InvalidImage) as refusal:
        fetch(f"{origin.url}/picture", networks=[])
    assert refusal.value.code == "invalid_image_url"
    assert len(origin.requests) == before


def test_a_name_that_answers_publicly_and_privately_is_refused(origin: Origin, names: Names) -> None:
    servers = names(["1.1.1.1", "10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/picture", servers=servers)


def test_the_checked_address_is_the_one_that_is_dialled(origin: Origin, names: Names) -> None:
    """DNS rebinding: a second look-up would lead elsewhere, so there must be none."""
    servers = names(["127.0.0.1"], ["10.0.0.1"])
    assert fetch(f"http://made.up:{origin.server_port}/picture", servers=servers) == encode(draw(GRID))
    assert origin.requests[-1][1]["host"] == f"made.up:{origin.server_port}"


def test_each_hop_is_looked_up_and_checked_anew(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"], ["10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/redirect", servers=servers)


@pytest.mark.parametrize("path", ["/packed", "/packed-twice"])
def test_compressed_bodies_are_refused_unread(origin: Origin, path: str) -> None:
    with pytest.raises(InvalidImage, match="compressed"):
        fetch(origin.url + path)


def test_cookies_are_not_kept(origin: Origin) -> None:
    fetch(f"{origin.url}/cookie", f"{origin.url}/picture")
    assert "cookie" not in origin.requests[-1][1]


@pytest.mark.parametrize("path", ["/to-nonsense", "/to-unicode"])
def test_redirects_to_no_url(origin: Origin, path: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        fetch(origin.url + path)
    assert refusal.value.code == "invalid_image_url"


@pytest.mark.parametrize("host", ["xn--a", "xn--.com", "xn--0.invalid"])
def test_names_that_are_no_idna(host: str) -> None:
    with pytest.raises(InvalidImage):
        fetch(f"http://{host}/")


def test_byte_cap(origin: Origin) -> None:
    with pytest.raises(InvalidImage, match="larger"):
        fetch(f"{origin.url}/large")


def test_only_named_hosts(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"])
    url = f"http://made.up:{origin.server_port}/picture"
    assert fetch(url, servers=servers, image_hosts=("made.up",))
    with pytest.raises(InvalidImage, match="host"):
        fetch(url, servers=servers, image_hosts=("*.made.up",))
    before = len(origin.requests)
    with pytest.raises(InvalidImage, match="no URLs"):
        fetch(url, servers=servers, image_hosts=())
    assert len(origin.requests) == before


def test_a_redirect_to_a_host_that_is_not_named(origin: Origin, names: Names) -> None:
    servers = names(["127.0.0.1"])
    with pytest.raises(InvalidImage, match="host"):
        fetch(f"http://made.up:{origin.server_port}/to-private", servers=servers, image_hosts=("made.up",))


def test_through_a_proxy(origin: Origin) -> None:
    """The proxy gets the whole URL, with a name that only it can resolve; a private address by number never gets that far."""
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
def test_hosts_that_keep_us_waiting(origin: Origin, path: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage) as refusal:
        fetch(origin.url + path, **settings)
    assert refusal.value.code == "failed_to_download_image"


def test_a_body_of_unknown_length(origin: Origin) -> None:
    assert fetch(f"{origin.url}/chunked") == encode(draw(GRID))


def test_so_many_at_once_and_no_more(origin: Origin) -> None:
    """Six that take 0.3 s, two at a time."""

    async def run() -> float:
        fetcher = Fetcher(Settings(allow_networks=tuple(LOOPBACK), image_downloads=2))
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(fetcher.fetch(f"{origin.url}/slow") for _ in range(6)))
        await fetcher.close()
        return asyncio.get_running_loop().time() - start

    assert asyncio.run(run()) > 0.85
