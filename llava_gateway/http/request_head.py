"""Checks of a request's head that the parser does not make (RFC 9112, sections 3.2 and 6.1).

A proxy and a server that read an ambiguous head differently disagree on the end of the request (request smuggling) or on its host.
"""

import re
from collections.abc import Sequence

Header = tuple[bytes, bytes]
"""A header's name in lower case, and its value."""
BAD_REQUEST, NOT_IMPLEMENTED = "400 Bad Request", "501 Not Implemented"
HOST = re.compile(rb"(?:[\w.~%!$&'()*+,;=-]*|\[[0-9A-Za-z.:%_-]+\])(?::\d*)?")
"""A host name or an address, with or without a port (RFC 3986, section 3.2). It may be empty (RFC 9112, section 3.2)."""


class Refused(Exception):
    """A request that the server answers before any application sees it. The connection is closed then."""

    def __init__(self, status: str, message: str) -> None:
        """`status`: the code and its reason phrase. `message`: one sentence for the client, without quotes or backslashes."""
        super().__init__(message)
        self.status, self.message = status, message


def check_head(method: bytes, version: str, headers: Sequence[Header]) -> None:
    """Raise Refused if a request must not be accepted.

    `version`: `1.0` or `1.1`, as the parser returns it.
    """
    if version not in ("1.0", "1.1"):
        raise Refused("505 HTTP Version Not Supported", "The version must be HTTP/1.1 or HTTP/1.0.")
    if method == b"CONNECT":
        raise Refused(NOT_IMPLEMENTED, "This server is not a proxy.")
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
    """Return whether a request with an `upgrade` header opens a WebSocket (RFC 6455, section 4.1).

    An opening request has no body, and its version is HTTP/1.1.
    """
    protocol = b""
    for name, value in headers:
        if name == b"upgrade":
            protocol = value.strip().lower()
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 \t")):
            return False
    return protocol == b"websocket" and method == b"GET" and version == "1.1"
