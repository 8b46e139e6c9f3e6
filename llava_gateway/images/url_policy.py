"""Which URLs may be fetched, and which network addresses they may lead to. Public http(s) only, unless the operator allows a network.

The address that is checked is the address that is dialled (see `network`), so a name cannot change its mind in between (DNS rebinding).
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from llava_gateway.errors import InvalidImage
from llava_gateway.settings import Network

Address = IPv4Address | IPv6Address

MAX_URL = 8192
HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
LOOKS_NUMERIC = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)  # WHATWG: a host whose last label is a number is an IPv4
FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is routed on the internet. Unique local, link-local, site-local, discard-only and multicast addresses are outside."""
NAT64 = IPv6Network("64:ff9b::/96")
NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215
NOT_PUBLIC = tuple(  # special purposes (IANA's registries) on which Python's versions differ
    ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
COMPATIBLE = IPv6Network("::/96")  # RFC 4291
TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765
ISATAP = 0x00005EFE  # RFC 5214: the upper half of an interface identifier, apart from two flags
ISATAP_MASK = 0xFCFFFFFF
THIS_NETWORK = IPv4Network("0.0.0.0/8")


def parse_url(url: str) -> SplitResult:
    """An http(s) URL that every parser reads alike. InvalidImage otherwise."""
    if len(url) > MAX_URL:
        raise _refused(f"is longer than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _refused("is not a valid URL") from None
    if parts.scheme not in ("http", "https"):
        raise _refused("must be a data: URI or an http(s) URL")
    if FORBIDDEN.search(url) or not url.isascii():
        raise _refused("has characters that must be percent-encoded")
    if "@" in parts.netloc:
        raise _refused("must not hold a user name or password")
    if not host or port == 0 or not _plain_host(parts.netloc, host):
        raise _refused("has an unusual host name")
    return parts


def check_host(parts: SplitResult, hosts: Sequence[str]) -> None:
    """InvalidImage unless the URL's host is one of `hosts`: `*` is any, `*.example.com` any below that. A private name is not meant: what
    counts for networks is the address."""
    host = (parts.hostname or "").lower().rstrip(".")
    if not any(pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in hosts):
        raise _refused("names a host that this server does not fetch images from" if hosts else "is refused: this server fetches no URLs")


def check_addresses(addresses: Sequence[Address], networks: Sequence[Network]) -> list[Address]:
    """The addresses that may be dialled. InvalidImage if one of them may not: a mixed answer is refused whole. `localhost` is an exception,
    since it always has two addresses: the one that is allowed counts."""
    allowed = [address for address in addresses if is_allowed(address, networks)]
    if not allowed or (len(allowed) < len(addresses) and not all(address.is_loopback for address in addresses)):
        raise InvalidImage("The image URL leads to a network that this server does not fetch from.", code="invalid_image_url")
    return allowed


def check_literal(host: str, networks: Sequence[Network]) -> None:
    """InvalidImage if the host is an address, and one that may not be fetched from."""
    try:
        address = ip_address(host)
    except ValueError:
        return
    check_addresses([address], networks)


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Whether an image may be fetched from there: the address and every IPv4 address in it must each be public, or in one of `networks`."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # no IPv6 at all: the operating system sends IPv4
        address = address.ipv4_mapped
    inner = embedded(address) if isinstance(address, IPv6Address) else []
    return all(_within(networks, each) or _is_public(each) for each in (address, *inner))


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return address in NAT64
    if _within(NOT_PUBLIC, address):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _within(networks: Sequence[Network], address: Address) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def embedded(address: IPv6Address) -> list[IPv4Address]:
    """Every IPv4 address that a router, a relay or a translator may read in an IPv6 address."""
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    found = [*(address.teredo or ()), *([address.sixtofour] if address.sixtofour else [])]
    if address in NAT64 or address in TRANSLATED or number >> 32 & ISATAP_MASK == ISATAP:
        found.append(low)
    possible = [_after_prefix(number, length) for length in (48, 56, 64)] if address in NAT64_LOCAL else []
    if address in NAT64_LOCAL or address in COMPATIBLE:
        possible.append(low)
    return found + [inner for inner in possible if inner not in THIS_NETWORK]  # zeros: nothing was embedded there


def _after_prefix(number: int, length: int) -> IPv4Address:
    """The IPv4 address behind a prefix of so many bits. Bits 64 to 71 are not part of it (RFC 6052)."""
    without = (number >> 64) << 56 | number & ((1 << 56) - 1)
    return IPv4Address(without >> (120 - length - 32) & 0xFFFFFFFF)


def _plain_host(netloc: str, host: str) -> bool:
    if netloc.startswith("["):
        try:
            return ip_address(host).version == 6 and "%" not in host
        except ValueError:
            return False
    if LOOKS_NUMERIC.search(host):
        try:
            return str(ip_address(host)) == host
        except ValueError:
            return False
    return HOST_NAME.fullmatch(host) is not None


def _refused(why: str) -> InvalidImage:
    return InvalidImage(f"The image URL {why}.", code="invalid_image_url")
