"""Which URLs and addresses images may come from."""

import contextlib
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images.address import check_host, is_allowed, parse_url

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "239.1.1.1",
    "255.255.255.255", "192.0.0.8", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fe80::5efe:127.0.0.1", "2001:4860::5efe:10.0.0.1", "2001:4860::200:5efe:7f00:1",
    "::127.0.0.1", "::10.0.0.1", "fec0::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    assert not is_allowed(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address))


def test_a_named_network_is_allowed_and_no_other() -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")]
    assert is_allowed(ip_address("10.1.2.3"), networks)
    assert is_allowed(ip_address("::ffff:10.1.2.3"), networks)
    assert is_allowed(ip_address("fd00:1::5"), networks)
    assert not is_allowed(ip_address("10.2.0.1"), networks)
    assert not is_allowed(ip_address("127.0.0.1"), networks)
    assert not is_allowed(ip_address("fd00:2::5"), networks)


@given(st.ip_addresses(v=4))
def test_an_ipv4_inside_an_ipv6_is_no_way_around(address: object) -> None:
    inner = ip_address(str(address))
    for outer in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"::{inner}"):
        if not is_allowed(inner):
            assert not is_allowed(ip_address(outer))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://example.com:8080/x?y=z#f",
        "http://1.1.1.1/",
        "http://[2606:4700::1]/",
        "HTTP://Sub-1.Example.COM./%20",
    ],
)
def test_plain_urls(url: str) -> None:
    assert parse_url(url).hostname


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://x/", "javascript:1", "http:/x", "http://",
        "http:///x", "http://a b/", "http://a\tb/", "http://a\r\n/", " http://a/", "http://a/\x00", "http://a\\b/", "http://u@a/",
        "http://u:p@a/", "http://127.1/", "http://0x7f000001/", "http://017700000001/", "http://2130706433/", "http://1.2.3/",
        "http://1.2.3.4./", "http://127.0.0.0x1/", "http://127.0.0.%31/", "http://%31/", "http://[::1", "http://[v1.x]/", "http://[::1%25eth0]/",
        "http://a:0/", "http://a:x/", "http://a:99999/", "http://a..b/", "http://-a/", "http://ex\u00e4mple.com/", "http://1\u30021.1.1/",
    ],
)  # fmt: skip
def test_odd_urls(url: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        parse_url(url)
    assert refusal.value.code == "invalid_image_url"


@given(st.text(max_size=40) | st.text(max_size=30).map("http://".__add__))
def test_any_text_is_a_url_or_refused(url: str) -> None:
    with contextlib.suppress(InvalidImage):
        parse_url(url)


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (["*"], "any.example", True),
        ([], "any.example", False),
        (["example.com"], "example.com", True),
        (["example.com"], "EXAMPLE.com.", True),
        (["example.com"], "sub.example.com", False),
        (["example.com"], "example.com.evil.net", False),
        (["*.example.com"], "a.b.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "badexample.com", False),
        (["1.1.1.1"], "1.1.1.1", True),
    ],
)
def test_the_list_of_hosts(hosts: list[str], host: str, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(InvalidImage):
        check_host(parse_url(f"https://{host}/x.png"), hosts)


def test_urls_are_bounded() -> None:
    with pytest.raises(InvalidImage, match="longer"):
        parse_url("http://a/" + "x" * 9000)
