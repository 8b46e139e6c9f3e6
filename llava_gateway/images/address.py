"""Which URLs may be fetched, and which network addresses they may lead to. Public http(s) only, unless the operator allows a network.

The address that is checked is the address that is dialled (see `fetch`), so a name cannot change its mind in between (DNS rebinding).
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from llava_gateway.errors import InvalidImage
from llava_gateway.settings import Network

Address = IPv4Address | IPv6Address

MAX_URL = 8192
HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
LOOKS_NUMERIC = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$", re.IGNORECASE)  # WHATWG: a host whose last label is a number is an IPv4
FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
NAT64 = IPv6Network("64:ff9b::/96")
NEVER = tuple(  # special purposes (IANA's registries) that lead elsewhere, and on which Python's versions differ
    ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "64:ff9b:1::/48", "3fff::/20", "fec0::/10")
)
ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the upper half of the interface identifier


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


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Whether an image may be fetched from there: a public address, or one of `networks`."""
    inner = _embedded(address)
    if _within(networks, address, inner):
        return True
    if _within(NEVER, address, inner):
        return False
    return inner.is_global and not inner.is_multicast and not inner.is_reserved and not inner.is_unspecified


def _within(networks: Sequence[Network], *addresses: Address) -> bool:
    return any(address in network for address in addresses for network in networks if address.version == network.version)


def _embedded(address: Address) -> Address:
    """The IPv4 address that a packet to `address` ends at, where IPv6 carries one."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in NAT64 or int(address) >> 32 & 0xFFFFFFFF in ISATAP or (int(address) >> 32 == 0 and int(address) > 0xFFFF):
        return low
    return address


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
