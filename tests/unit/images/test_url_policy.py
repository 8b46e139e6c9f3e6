"""The policy for image URLs: allowed forms of URLs, hosts and addresses."""

import contextlib
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images.url_policy import check_addresses, check_host, is_allowed, parse_url

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "239.1.1.1",
    "255.255.255.255", "192.0.0.8", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fe80::5efe:127.0.0.1", "2001:4860::5efe:10.0.0.1", "2001:4860::200:5efe:7f00:1",
    "::127.0.0.1", "::10.0.0.1", "fec0::1",
    "fd00::5efe:808:808", "fe80::5efe:8.8.8.8", "fec0::200:5efe:8.8.8.8", "2001:4860::300:5efe:10.0.0.1",  # ISATAP
    "64:ff9b:1::8.8.8.8", "::8.8.8.8", "::ffff:0:8.8.8.8", "::ffff:0:10.0.0.1", "64:ff9b::",
    "2001:0:808:808::f7f7:f7f7", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::808:808", "3fff::1", "100::1", "5f00::1", "4000::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    assert not is_allowed(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address))


def test_only_listed_networks_are_allowed() -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")]
    assert is_allowed(ip_address("10.1.2.3"), networks)
    assert is_allowed(ip_address("::ffff:10.1.2.3"), networks)
    assert is_allowed(ip_address("fd00:1::5"), networks)
    assert not is_allowed(ip_address("10.2.0.1"), networks)
    assert not is_allowed(ip_address("127.0.0.1"), networks)
    assert not is_allowed(ip_address("fd00:2::5"), networks)


@pytest.mark.parametrize(
    ("outer", "address", "allowed"),
    [
        ("fd00::/8", "fd00::5efe:8.8.8.8", True),
        ("fd00::/8", "fd00::5efe:10.0.0.1", False),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1", True),
        ("10.0.0.0/8", "fd00::5efe:10.0.0.1", False),
        ("64:ff9b:1::/48", "64:ff9b:1::8.8.8.8", True),
        ("64:ff9b:1::/48", "64:ff9b:1::10.0.0.1", False),
        ("64:ff9b:1::/48", "64:ff9b:1:0a00:0:100::", False),  # 10.0.0.1 after a prefix of 48 bits
        ("64:ff9b:1::/48", "64:ff9b:1:ff0a:0:1::", False),  # after 56 bits
        ("64:ff9b:1::/48", "64:ff9b:1:ffff:a:0:100:0", False),  # after 64 bits
        ("2002::/16", "2002:808:808::1", True),
        ("2002::/16", "2002:a00:1::1", False),
        ("2001::/32", "2001:0:808:808::f7f7:f7f7", True),
        ("2001::/32", "2001:0:808:808::f5ff:fffe", False),  # the Teredo client is 10.0.0.1, written as its complement
        ("2001::/32", "2001:0:a00:1::f7f7:f7f7", False),  # the Teredo server is 10.0.0.1
        ("::1/128", "::1", True),
        ("::/96", "::10.0.0.1", False),
        ("::ffff:0:0:0/96", "::ffff:0:10.0.0.1", False),
        ("::ffff:0:0:0/96", "::ffff:0:8.8.8.8", True),
    ],
)
def test_an_allowed_network_does_not_allow_embedded_addresses(outer: str, address: str, allowed: bool) -> None:
    assert is_allowed(ip_address(address), [ip_network(outer)]) == allowed


REFUSED_IPV4 = {  # as bits, from IANA's registries
    prefix: "".join(f"{int(part):08b}" for part in prefix.split("/")[0].split("."))[: int(prefix.split("/")[1])]
    for prefix in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
}  # fmt: skip
IPV4 = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda number: f"{number:032b}"),
    st.sampled_from(sorted(REFUSED_IPV4.values())).flatmap(
        lambda prefix: st.integers(0, 2 ** (32 - len(prefix)) - 1).map(lambda rest: prefix + f"{rest:0{32 - len(prefix)}b}")
    ),
)
BITS_64 = st.integers(0, 2**64 - 1).map(lambda number: f"{number:064b}")
HEAD_2000 = f"{0x2A00:016b}"


def public(bits: str) -> bool:
    return not any(bits.startswith(prefix) for prefix in REFUSED_IPV4.values())


def address_of(bits: str) -> IPv4Address | IPv6Address:
    return ip_address(int(bits, 2).to_bytes(len(bits) // 8, "big"))


@NO_DEADLINE
@given(IPV4)
def test_an_ipv4_address_is_judged_by_ianas_registries(bits: str) -> None:
    assert is_allowed(address_of(bits)) == public(bits)


@NO_DEADLINE
@given(BITS_64, IPV4, st.sampled_from([0x5EFE, 0x0200_5EFE]))
def test_isatap_addresses_are_judged_by_both_of_their_addresses(prefix: str, inner: str, marker: int) -> None:
    for outer, outer_public in (
        (HEAD_2000 + prefix[16:], True),
        (f"{0xFD00:016b}" + prefix[16:], False),
        (f"{0xFE80:016b}" + prefix[16:], False),
    ):
        assert is_allowed(address_of(outer + f"{marker:032b}" + inner)) == (outer_public and public(inner))


@NO_DEADLINE
@given(IPV4, st.sampled_from(["", "ffff:"]))
def test_translated_and_mapped_addresses_are_judged_by_their_ipv4_address(inner: str, mapped: str) -> None:
    text = str(address_of(inner))
    assert is_allowed(ip_address(f"::{mapped}{text}" if mapped else f"64:ff9b::{text}")) == public(inner)


@NO_DEADLINE
@given(st.integers(0, 2**128 - 1))
def test_an_address_outside_global_unicast_is_refused_whatever_it_embeds(number: int) -> None:
    address = ip_address(number.to_bytes(16, "big"))
    if number >> 125 != 1 and number >> 32 not in (0xFFFF, 0x64FF9B << 64):
        assert not is_allowed(address)


@NO_DEADLINE
@given(st.ip_addresses(v=4))
def test_a_private_ipv4_address_is_not_reachable_through_ipv6(address: object) -> None:
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
def test_an_ordinary_url_is_not_refused(url: str) -> None:
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
def test_an_ambiguous_or_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        parse_url(url)
    assert refusal.value.code == "invalid_image_url"


@NO_DEADLINE
@given(st.text(max_size=40) | st.text(max_size=30).map("http://".__add__))
def test_no_text_raises_anything_but_invalid_image(url: str) -> None:
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
def test_only_hosts_on_the_list_are_allowed(hosts: list[str], host: str, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(InvalidImage):
        check_host(parse_url(f"https://{host}/x.png"), hosts)


def test_localhost_needs_only_one_allowed_address() -> None:
    both = [ip_address("::1"), ip_address("127.0.0.1")]
    assert check_addresses(both, [ip_network("127.0.0.0/8")]) == both[1:]
    with pytest.raises(InvalidImage):
        check_addresses(both, [])


@pytest.mark.parametrize("private", ["10.0.0.1", "127.0.0.1", "fd00::5efe:8.8.8.8"])
def test_a_name_with_public_and_private_addresses_is_refused(private: str) -> None:
    with pytest.raises(InvalidImage):
        check_addresses([ip_address("8.8.8.8"), ip_address(private)], [])


def test_a_url_over_the_limit_is_refused() -> None:
    with pytest.raises(InvalidImage, match="longer"):
        parse_url("http://a/" + "x" * 9000)
