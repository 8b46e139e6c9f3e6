"""The sockets of `llava-gateway serve`. They are opened before the model loads, so that a taken port is reported at once."""

import errno
import socket
from collections.abc import Iterable
from typing import Any


class ListenError(Exception):
    """A port cannot be opened. The message is one line for the operator."""


def listen(host: str, ports: Iterable[int]) -> list[socket.socket]:
    """Return sockets that are bound to all addresses of `host`, on each port.

    `host`: a name or an address. `::` and the empty host are all addresses of IPv4 and IPv6. Raises ListenError.
    """
    sockets: list[socket.socket] = []
    try:
        for port in ports:
            sockets += _bind_all(host, port)
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = error.strerror if isinstance(error, OSError) else "this is not a host name"
        raise ListenError(f"cannot listen on {url_host(host)}:{port}: {reason}") from error
    return sockets


def url_host(host: str) -> str:
    """Return a host as URLs have it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _bind_all(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of `host`. A family that this machine has no addresses of is left out, unless no other is left."""
    found = dict.fromkeys(socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    sockets: list[socket.socket] = []
    for index, (family, kind, protocol, _, address) in enumerate(found):
        try:
            sockets.append(_bind(family, kind, protocol, address, only_ipv6=len(found) > 1))
        except OSError as error:
            missing = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if missing and (sockets or index < len(found) - 1):
                continue
            for each in sockets:
                each.close()
            raise
    return sockets


def _bind(family: int, kind: int, protocol: int, address: Any, *, only_ipv6: bool) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        bound.bind(address)
        bound.listen(0)  # two sockets can be bound to one port, but only one of them can listen
    except BaseException:
        bound.close()
        raise
    return bound
