"""Parsing a request's JSON without copying its pictures. Base64 of megabytes stays where it is in the body: the parser sees a word in its
place, and the request gets an `InPlace` that looks at the bytes. (Copied into a string, a picture costs more than its base64.)
"""

import re
import secrets
from typing import Any

import orjson

from llava_gateway.chat import InPlace
from llava_gateway.errors import InvalidRequest
from llava_gateway.web.sizes import parsed_size

_HEAD = re.compile(rb"(?:data:[ -~]{0,200}?,)?[A-Za-z0-9+/_%-]{16}")
_COLON = re.compile(rb"\s*:")
_BETWEEN = re.compile(rb"\s*[,:\]}]")
"""How the text after a string's closing quote begins."""
LONG = 1 << 18
"""Bytes from which base64, and a `data:` URI, is left in place. No text of a prompt may be as long."""
MAX_TEXT = 4 << 20
"""Bytes of a string that is no picture. No model's context has room for as much."""


class JsonText:
    """A JSON text, looked through but not parsed yet."""

    def __init__(self, body: bytes | bytearray, *, max_text: int | None = MAX_TEXT) -> None:
        """`max_text`: bytes of the longest string that is no picture; None: strings may be as long as the body. InvalidRequest for longer
        strings, and for too many values."""
        self._pieces, self._pictures = _cut(body, max_text)
        self.parsed_size = parsed_size(self._pieces)
        """Most bytes that it takes once it is parsed, without the pictures that are left in place."""
        self.picture_size = sum(len(picture.ascii) for picture in self._pictures)
        """Bytes of these."""

    def parse(self) -> Any:
        """The value; strings that are long base64 or `data:` URIs are `InPlace`. InvalidRequest if this is not JSON."""
        try:
            if not self._pictures:
                return orjson.loads(self._pieces[0])
            names = [secrets.token_hex(16) for _ in self._pictures]
            text = b"".join(part for piece, name in zip(self._pieces, [*names, ""], strict=True) for part in (piece, name.encode()))
            return _with(dict(zip(names, self._pictures, strict=True)), orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def loads(body: bytes | bytearray) -> Any:
    """The JSON text's value. InvalidRequest."""
    return JsonText(body).parse()


def _cut(body: bytes | bytearray, max_text: int | None) -> tuple[list[memoryview], list[InPlace]]:
    """What is around the long strings of base64, and these. Quotes stay with what is around, so that what was not JSON does not become
    it. Looks between two quotes around every LONG / 2 bytes: what is LONG cannot slip through, and each byte is looked at twice at most."""
    view = memoryview(body)
    pieces: list[memoryview] = []
    found: list[InPlace] = []
    done = last = 0
    while (at := last + LONG // 2) < len(body) and (end := body.find(b'"', at)) >= 0:
        start = body.rfind(b'"', last, at) + 1
        if start and end - start >= LONG:
            if _is_picture(body, start, end):
                pieces.append(view[done:start])
                found.append(InPlace(view[start:end]))
                done = end
            elif max_text is not None and end - start > max_text and _is_text(body, start, end):
                raise InvalidRequest(f"The body has a text of more than {max_text} bytes, which is longer than any prompt.")
        last = end
    pieces.append(view[done:])
    return pieces, found


def _is_picture(body: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a whole string that begins and ends here, if this is JSON, looks like base64, and is no key. What follows a string's closing
    quote never does, nor does what an escape precedes or is within."""
    escaped = body[start - 2 : start - 1] == b"\\" or body.find(b"\\", start, end) >= 0
    return bool(_HEAD.match(body, start, end)) and not escaped and not _COLON.match(body, end + 1)


def _is_text(body: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a string begins here, if this is JSON, that is no picture in base64, not even one with white space in escapes."""
    return not (_BETWEEN.match(body, start, end) or _HEAD.match(body, start, end))


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
