"""Fetching over real sockets from a real origin; only names are made up, since there is no DNS here."""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from origin import GRID, Origin

from llava_gateway.demo.pictures import draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import USER_AGENT, Fetcher

LOOPBACK = [ip_network("127.0.0.0/8")]
Names = Callable[..., None]


def fetch(*urls: str, networks: Any = LOOPBACK, max_bytes: int = 1 << 20) -> bytes:
    """What the last of the URLs gives."""

    async def run() -> bytes:
        fetcher = Fetcher(max_bytes=max_bytes, timeout=2, allow_networks=networks)
        try:
            for url in urls:
                data = await fetcher.fetch(url, "p")
            return data
        finally:
            await fetcher.close()

    return asyncio.run(run())


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Gives a made-up host name its addresses, another list each time it is asked for."""

    def define(*answers: list[str]) -> None:
        remaining = list(answers)

        async def getaddrinfo(self: object, host: str, port: int, **options: object) -> list[Any]:
            answer = remaining.pop(0) if host == "made.up" else [host]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]

        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)

    return define


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
    names(["1.1.1.1", "10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/picture")


def test_the_checked_address_is_the_one_that_is_dialled(origin: Origin, names: Names) -> None:
    """DNS rebinding: a second look-up would lead elsewhere, so there must be none."""
    names(["127.0.0.1"])
    assert fetch(f"http://made.up:{origin.server_port}/picture") == encode(draw(GRID))
    assert origin.requests[-1][1]["host"] == f"made.up:{origin.server_port}"


def test_each_hop_is_looked_up_and_checked_anew(origin: Origin, names: Names) -> None:
    names(["127.0.0.1"], ["10.0.0.1"])
    with pytest.raises(InvalidImage, match="network"):
        fetch(f"http://made.up:{origin.server_port}/redirect")


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
        fetch(f"{origin.url}/picture", max_bytes=100)
