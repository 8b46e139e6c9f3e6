"""The sockets of `llava-gateway serve`, and the rule for sockets that other machines can reach.

They are opened before the model loads, so that a taken port is reported at once.
"""

import contextlib
import errno
import ipaddress
import socket
from pathlib import Path
from typing import Any

from llava_gateway.settings import Settings, SettingsError, url_host


class ListenError(Exception):
    """A port or a Unix domain socket cannot be opened. The message is one line for the operator."""


def listen(settings: Settings) -> list[socket.socket]:
    """Return the sockets that the server listens on: a Unix domain socket or all addresses of the host, and each further port.

    The hosts `::` and "" are all addresses of IPv4 and IPv6. Raises ListenError.
    """
    sockets: list[socket.socket] = []
    where = settings.uds
    try:
        if settings.uds:
            sockets.append(_bind_path(settings.uds))
        for port in settings.more_ports if settings.uds else (settings.port, *settings.more_ports):
            where = f"{url_host(settings.host)}:{port}"
            sockets += _bind_all(settings.host, port)
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "this is not a host name"
        raise ListenError(f"cannot listen on {where}: {reason}") from error
    return sockets


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


def _bind_path(path: str) -> socket.socket:
    """Return a Unix domain socket at `path`, for all users, in place of a socket that an earlier server has left there."""
    if Path(path).is_socket():
        Path(path).unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        Path(path).chmod(0o666)  # as uvicorn does, since a proxy may run as another user
    except OSError:
        bound.close()
        raise
    return bound


def check_keys(settings: Settings) -> None:
    """Raise SettingsError if other machines could use the server without a key, unless the settings say that this is intended."""
    local = _is_loopback(settings.host) or (settings.uds and not settings.more_ports)
    if settings.auth == "auto" and not settings.api_keys and not settings.keys_file and not local:
        raise SettingsError(
            f"--host {settings.host} can be reached from other machines, but no API keys are set. Make a key with "
            "`llava-gateway keys new NAME --file keys.json` and set --keys-file keys.json; or set --auth none to let everybody in."
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
