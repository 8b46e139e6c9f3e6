"""Checks of a request's head that the parser leaves out (RFC 9112, sections 3.2 and 6.1). A proxy and a server that read such a head in
different ways disagree on where the request ends, or on its host."""

import re
from collections.abc import Sequence

Header = tuple[bytes, bytes]
"""Its name in lower case, and its value."""
BAD_REQUEST, NOT_IMPLEMENTED = "400 Bad Request", "501 Not Implemented"
HOST = re.compile(rb"(?:[\w.~%!$&'()*+,;=-]*|\[[0-9A-Za-z.:%_-]+\])(?::\d*)?")
"""A name or an address, and a port (RFC 3986, section 3.2); empty if there is none to name."""


class Refused(Exception):
    """A request that is answered by the server itself, which then closes the connection."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check_head(method: bytes, version: str, headers: Sequence[Header]) -> None:
    """Raises Refused."""
    if version not in ("1.0", "1.1"):
        raise Refused("505 HTTP Version Not Supported", "The version must be HTTP/1.1 or HTTP/1.0.")
    if method == b"CONNECT":
        raise Refused(NOT_IMPLEMENTED, "This server is no proxy.")
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise Refused(BAD_REQUEST, "There must be exactly one Host header.")
    if hosts and not HOST.fullmatch(headers[names.index(b"host")][1]):
        raise Refused(BAD_REQUEST, "The Host header is not a host.")
    if b"transfer-encoding" in names:
        _check_codings([value.strip().lower() for name, value in headers if name == b"transfer-encoding"], version)


def _check_codings(codings: list[bytes], version: str) -> None:
    if version == "1.0":
        raise Refused(BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")
    if codings != [b"chunked"]:
        raise Refused(NOT_IMPLEMENTED, "The only Transfer-Encoding must be chunked.")


def is_websocket(method: bytes, version: str, headers: Sequence[Header]) -> bool:
    """Whether a request that offers to change the protocol begins a WebSocket. A body cannot come before one, and HTTP/1.0 has none."""
    protocol = b""
    for name, value in headers:
        if name == b"upgrade":
            protocol = value.strip().lower()
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 \t")):
            return False
    return protocol == b"websocket" and method == b"GET" and version == "1.1"
