"""Decides which URLs may be fetched and which network addresses may be reached: only public ones, unless the operator allows a network.

The checked address is also the dialled address (see `network`). A name server cannot replace it after the check (DNS rebinding).
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from llava_gateway.errors import InvalidImage
from llava_gateway.settings import Network

Address = IPv4Address | IPv6Address

MAX_URL = 8192
"""The greatest length of a URL, in characters."""
HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
LOOKS_NUMERIC = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)  # WHATWG: a host whose last label is a number is an IPv4
FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
GLOBAL_UNICAST = IPv6Network("2000::/3")
"""The part of IPv6 that is routed on the internet, without unique local, link-local, site-local, discard-only and multicast addresses."""
NAT64 = IPv6Network("64:ff9b::/96")
NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215
NOT_PUBLIC = tuple(  # IANA's special-purpose registries; Python's versions differ about these
    ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
COMPATIBLE = IPv6Network("::/96")  # RFC 4291
TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765
ISATAP = 0x00005EFE  # RFC 5214: the upper half of an interface identifier, apart from two flags
ISATAP_MASK = 0xFCFFFFFF
THIS_NETWORK = IPv4Network("0.0.0.0/8")


def parse_url(url: str) -> SplitResult:
    """Parse an http(s) URL. Raise InvalidImage if the URL is not valid, or if parsers disagree about URLs of its form."""
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
    if not host or port == 0 or not _is_plain_host(parts.netloc, host):
        raise _refused("has an unusual host name")
    return parts


def check_host(parts: SplitResult, hosts: Sequence[str]) -> None:
    """Raise InvalidImage if the URL's host matches none of `hosts`.

    `*` matches every host, and `*.example.com` every host below example.com. Whether a network is private is decided later, by the address.
    """
    host = (parts.hostname or "").lower().rstrip(".")
    if not any(pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in hosts):
        raise _refused("names a host that this server does not fetch images from" if hosts else "is refused: this server fetches no URLs")


def check_addresses(addresses: Sequence[Address], networks: Sequence[Network]) -> list[Address]:
    """Return the addresses that may be dialled. Raise InvalidImage if one of the addresses is not allowed.

    `localhost` is an exception, because it always has two addresses: if one of them is allowed, that one is returned.
    """
    allowed = [address for address in addresses if is_allowed(address, networks)]
    if not allowed or (len(allowed) < len(addresses) and not all(address.is_loopback for address in addresses)):
        raise InvalidImage("The image URL leads to a network that this server does not fetch from.", code="invalid_image_url")
    return allowed


def check_literal(host: str, networks: Sequence[Network]) -> None:
    """Raise InvalidImage if the host is a literal address that is not allowed."""
    try:
        address = ip_address(host)
    except ValueError:
        return
    check_addresses([address], networks)


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Return whether images may be fetched from the address.

    The address, and every IPv4 address embedded in it, must be public or in one of `networks`.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # the operating system sends IPv4 to such an address
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
    """Return every IPv4 address that a router, a relay or a translator may extract from an IPv6 address."""
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    found = [*(address.teredo or ()), *([address.sixtofour] if address.sixtofour else [])]
    if address in NAT64 or address in TRANSLATED or number >> 32 & ISATAP_MASK == ISATAP:
        found.append(low)
    possible = [_after_prefix(number, length) for length in (48, 56, 64)] if address in NAT64_LOCAL else []
    if address in NAT64_LOCAL or address in COMPATIBLE:
        possible.append(low)
    return found + [inner for inner in possible if inner not in THIS_NETWORK]  # zeros: no address is embedded


def _after_prefix(number: int, length: int) -> IPv4Address:
    """Return the IPv4 address after a prefix of `length` bits. Bits 64 to 71 are not part of the address (RFC 6052)."""
    joined = (number >> 64) << 56 | number & ((1 << 56) - 1)
    return IPv4Address(joined >> (120 - length - 32) & 0xFFFFFFFF)


def _is_plain_host(netloc: str, host: str) -> bool:
    """Return whether the host is a name, or an address in its usual notation."""
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


def _refused(reason: str) -> InvalidImage:
    return InvalidImage(f"The image URL {reason}.", code="invalid_image_url")
