"""Images that travel inside the request (RFC 2397 `data:` URIs). The label is not believed, and harmless sloppiness is forgiven."""

import binascii
from urllib.parse import unquote_to_bytes

import pybase64

from llava_gateway.chat import DataUri
from llava_gateway.errors import InvalidImage
from llava_gateway.images import too_large

_CLEAN = bytes.maketrans(b"-_", b"+/")  # URL-safe base64 (RFC 4648, section 5)
_WHITE = b" \t\r\n"


_MAX_HEAD = 1000


def told_apart(url: str | DataUri) -> str | DataUri:
    """A URL that has to be fetched, or a DataUri however short."""
    if isinstance(url, str) and url[:5].lower() == "data:":
        return DataUri(memoryview(url.encode(errors="replace")))
    return url


def decode_data_uri(uri: DataUri, max_bytes: int) -> bytes:
    """The bytes inside a base64 `data:` URI. Padding may lack, lines may be broken, the alphabet may be the URL-safe one."""
    head, comma, _ = bytes(uri.ascii[:_MAX_HEAD]).partition(b",")
    payload = uri.ascii[len(head) + 1 :]
    if not comma or not head.rstrip().lower().endswith(b";base64"):
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


def _decode(payload: memoryview) -> bytes:
    try:
        return pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        plain = unquote_to_bytes(bytes(payload)).translate(_CLEAN, _WHITE).rstrip(b"=")
        return pybase64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
