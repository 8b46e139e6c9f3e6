"""Parsing a request's JSON without copying its pictures. Base64 of megabytes stays where it is in the body: the parser sees a word in its
place, and the request gets an `InPlace` that looks at the bytes. (Copied into a string, a picture costs more than its base64.)
"""

import re
import secrets
from typing import Any

import orjson

from llava_gateway.chat import InPlace
from llava_gateway.errors import InvalidRequest

_HEAD = re.compile(rb"(?:data:[ -~]{0,200}?,)?[A-Za-z0-9+/_-]{16}")
_COLON = re.compile(rb"\s*:")
LONG = 1 << 18
"""Bytes from which base64, and a `data:` URI, is left in place. No text of a prompt may be as long."""
MAX_VALUES = 1 << 21
"""Of a body. Two million are parsed in a tenth of a second, during which nobody else is served."""


def loads(body: bytes) -> Any:
    """The body's JSON; strings that are long base64 or `data:` URIs are `InPlace`. InvalidRequest if it is not JSON."""
    pieces, found = _cut(body)
    if sum(piece.count(b",") for piece in pieces) > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")
    try:
        if not found:
            return orjson.loads(body)
        names = [secrets.token_hex(16) for _ in found]
        text = b"".join(part for piece, name in zip(pieces, [*names, ""], strict=True) for part in (piece, name.encode()))
        return _with(dict(zip(names, found, strict=True)), orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def _cut(body: bytes) -> tuple[list[bytes], list[InPlace]]:
    """What is around the long strings of base64, and these. Quotes stay with what is around, so that what was not JSON does not become
    it. Looks between two quotes around every LONG / 2 bytes: what is LONG cannot slip through, and each byte is looked at twice at most."""
    view = memoryview(body)
    pieces: list[bytes] = []
    found: list[InPlace] = []
    done = last = 0
    while (at := last + LONG // 2) < len(body) and (end := body.find(b'"', at)) >= 0:
        start = body.rfind(b'"', last, at) + 1
        if start and end - start >= LONG and _is_picture(body, start, end):
            pieces.append(body[done:start])
            found.append(InPlace(view[start:end]))
            done = end
        last = end
    pieces.append(body[done:])
    return pieces, found


def _is_picture(body: bytes, start: int, end: int) -> bool:
    """Whether a whole string that begins and ends here, if this is JSON, looks like base64, and is no key. What follows a string's closing
    quote never does, nor does what an escape precedes or is within."""
    escaped = body[start - 2 : start - 1] == b"\\" or body.find(b"\\", start, end) >= 0
    return bool(_HEAD.match(body, start, end)) and not escaped and not _COLON.match(body, end + 1)


def _with(found: dict[str, InPlace], document: Any) -> Any:
    """The document with what was cut out in the places of its names. (A loop: documents may be nested more deeply than Python calls.)"""
    root = [document]
    unseen: list[Any] = [root]
    while unseen:
        container = unseen.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str):
                if value in found:
                    container[key] = found[value]
            elif isinstance(value, dict | list):
                unseen.append(value)
    return root[0]
