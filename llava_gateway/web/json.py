"""Parsing a request's JSON without copying its pictures. A `data:` URI of megabytes stays where it is in the body: the parser sees a word
in its place, and the request gets a `DataUri` that looks at the bytes. (Copied into a string, a picture costs more than its base64.)
"""

import re
import secrets
from typing import Any

import orjson

from llava_gateway.chat import DataUri
from llava_gateway.errors import InvalidRequest

_COLON = re.compile(rb"\s*:")
LONG = 1 << 18
"""Bytes from which a string is left in place. No text of a prompt may be as long."""
MAX_VALUES = 1 << 21
"""Of a body. Two million are parsed in a tenth of a second, during which nobody else is served."""


def loads(body: bytes) -> Any:
    """The body's JSON; strings that are long data: URIs are `DataUri`s. InvalidRequest if it is not JSON."""
    pieces, uris = _cut(body)
    if sum(piece.count(b",") for piece in pieces) > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")
    try:
        if not uris:
            return orjson.loads(body)
        names = [secrets.token_hex(16) for _ in uris]
        text = b"".join(part for piece, name in zip(pieces, [*names, ""], strict=True) for part in (piece, name.encode()))
        return _with(dict(zip(names, uris, strict=True)), orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def _cut(body: bytes) -> tuple[list[bytes], list[DataUri]]:
    """What is around the long data: URIs, and these. Quotes stay with what is around, so that what was not JSON does not become it."""
    if len(body) < LONG:
        return [body], []
    view = memoryview(body)
    pieces: list[bytes] = []
    uris: list[DataUri] = []
    done = at = 0
    while (at := body.find(b'"data:', at)) >= 0:
        start = at + 1
        end = body.find(b'"', start)
        escaped = body[at - 1 : at] == b"\\" or body.find(b"\\", start, end) >= 0
        if end - start >= LONG and not escaped and not _COLON.match(body, end + 1):
            pieces.append(body[done:start])
            uris.append(DataUri(view[start:end]))
            done = end
        at = end if end >= 0 else len(body)
    pieces.append(body[done:])
    return pieces, uris


def _with(uris: dict[str, DataUri], document: Any) -> Any:
    """The document with the URIs in the places of their names. (A loop: documents may be nested more deeply than Python calls.)"""
    root = [document]
    unseen: list[Any] = [root]
    while unseen:
        container = unseen.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str):
                if value in uris:
                    container[key] = uris[value]
            elif isinstance(value, dict | list):
                unseen.append(value)
    return root[0]
