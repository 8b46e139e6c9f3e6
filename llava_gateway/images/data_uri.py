"""Images that travel inside the request (RFC 2397 `data:` URIs). The label is not believed, and harmless sloppiness is forgiven."""

import binascii
from urllib.parse import unquote_to_bytes

import pybase64

from llava_gateway.errors import InvalidImage
from llava_gateway.images import too_large

_CLEAN = bytes.maketrans(b"-_", b"+/")  # URL-safe base64 (RFC 4648, section 5)
_WHITE = b" \t\r\n"


def is_data_uri(url: str) -> bool:
    return url[:5].lower() == "data:"


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes inside a base64 `data:` URI. Padding may lack, lines may be broken, the alphabet may be the URL-safe one."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.rstrip().lower().endswith(";base64"):
        raise InvalidImage("A data: URI must read data:image/...;base64,<data>.", code="invalid_base64_image")
    if len(payload) * 3 // 4 > max_bytes * 1.1:
        raise too_large(max_bytes)
    try:
        data = _decode(payload)
    except (binascii.Error, ValueError):
        raise InvalidImage("The data: URI does not hold valid base64.", code="invalid_base64_image") from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def _decode(payload: str) -> bytes:
    try:
        return pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        plain = unquote_to_bytes(payload).translate(_CLEAN, _WHITE).rstrip(b"=")
        return pybase64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
