"""Images inside the request, as base64 or `data:` URIs (RFC 2397). The media type is ignored, and harmless deviations are accepted.

White space is allowed where browsers allow it: around the URI, in its head and in its base64 (https://fetch.spec.whatwg.org/#data-urls).
"""

import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import pybase64

from llava_gateway.errors import InvalidImage, image_too_large
from llava_gateway.types import ImageBase64, ImageUrl

_CLEAN = bytes.maketrans(b"-_", b"+/")  # URL-safe base64 (RFC 4648, section 5)
_WHITE = b" \t\r\n\f"
_BASE64_HEAD = re.compile(rb";\s*base64\s*", re.IGNORECASE)
"""How the head of a `data:` URI in base64 ends."""
_ESCAPES = tuple((form % code, bytes([code])) for code in b"+/=-_" + _WHITE for form in (b"%%%02X", b"%%%02x"))
"""The escapes that programs use in base64, for its special characters and for white space."""
_MAX_ODD_ESCAPES = 10_000
"""The greatest number of other escapes."""
_MAX_HEAD = 1000
"""The greatest length of a `data:` URI before its comma, in bytes."""
_SLICE = 1 << 14
"""The number of bytes that are percent-decoded at once."""


def inlined(image: ImageUrl | ImageBase64) -> memoryview | str:
    """Return the base64 or `data:` URI in the request as ASCII, or the URL of the image as a string."""
    given = image.base64 if isinstance(image, ImageBase64) else image.url
    if not isinstance(given, str):
        return given.ascii
    given = given.strip(_WHITE.decode())
    if isinstance(image, ImageBase64) or given[:5].lower() == "data:":
        return memoryview(given.encode(errors="replace"))
    return given


def decode_inlined(inline: memoryview, max_bytes: int) -> bytes:
    """Return the bytes of a `data:` URI or of bare base64.

    Padding may be missing, white space may be inside, and the alphabet may be the URL-safe one. Raises InvalidImage if the base64 is not
    valid or the file has more than `max_bytes` bytes.
    """
    payload = inline
    start = bytes(inline[:_MAX_HEAD])
    if start.lstrip(_WHITE)[:5].lower() == b"data:":
        head, comma, _ = start.partition(b",")
        payload = inline[len(head) + 1 :]
        if not comma or not _BASE64_HEAD.fullmatch(head, max(head.rfind(b";"), 0)):
            raise InvalidImage("A data: URI must read data:image/...;base64,<data>.", code="invalid_base64_image")
    if len(payload) * 3 // 4 > max_bytes * 1.1:
        raise image_too_large(max_bytes)
    try:
        data = _decode(payload, max_bytes)
    except (binascii.Error, ValueError):
        raise InvalidImage("The image is not valid base64.", code="invalid_base64_image") from None
    if len(data) > max_bytes:
        raise image_too_large(max_bytes)
    return data


def _decode(payload: memoryview, max_bytes: int) -> bytes:
    try:
        return pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        return _decode_lenient(payload, max_bytes)


def _decode_lenient(payload: memoryview, max_bytes: int) -> bytes:
    """Decode base64 that is percent-encoded, has white space or the URL-safe alphabet, or has no padding.

    The payload is decoded in slices: millions of escapes at once would take 50 times their size, and wrong base64 is refused at its first
    slice. The function returns early, with more than `max_bytes` bytes, if the file is too large.
    """
    data, rest, padded, odd_escapes = bytearray(), b"", False, 0
    for piece in _slices(payload):
        for escape, character in _ESCAPES:
            piece = piece.replace(escape, character)
        if b"%" in piece:  # unquote_to_bytes takes a microsecond for each escape, and holds the GIL
            odd_escapes += piece.count(b"%")
            if odd_escapes > _MAX_ODD_ESCAPES:
                raise binascii.Error("too many escapes")
            piece = unquote_to_bytes(piece)
        clean = piece.translate(_CLEAN, _WHITE)
        text = clean.rstrip(b"=")
        if b"=" in text or (padded and text):
            raise binascii.Error("padding before the end")
        padded = padded or len(text) < len(clean)
        whole = len(rest + text) // 4 * 4
        data += pybase64.b64decode((rest + text)[:whole], validate=True)
        rest = (rest + text)[whole:]
        if len(data) > max_bytes:
            break
    else:
        data += pybase64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
    return bytes(data)


def _slices(payload: memoryview) -> Iterator[bytes]:
    """Yield the payload in slices. No slice ends inside an escape."""
    start = 0
    while start < len(payload):
        piece = bytes(payload[start : start + _SLICE])
        escape = piece.find(b"%", -2) if len(piece) == _SLICE else -1
        piece = piece if escape < 0 else piece[:escape]
        yield piece
        start += len(piece)
