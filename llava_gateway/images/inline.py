"""Images inside the request: base64, or `data:` URIs (RFC 2397). Labels are not believed, and harmless sloppiness is forgiven."""

import binascii
from urllib.parse import unquote_to_bytes

import pybase64

from llava_gateway.chat import ImageBase64, ImageSource
from llava_gateway.errors import InvalidImage
from llava_gateway.images import too_large

_CLEAN = bytes.maketrans(b"-_", b"+/")  # URL-safe base64 (RFC 4648, section 5)
_WHITE = b" \t\r\n"
_MAX_HEAD = 1000


def inlined(image: ImageSource) -> memoryview | str:
    """What the request itself holds of the image, as ASCII; or the URL where it is."""
    given = image.base64 if isinstance(image, ImageBase64) else image.url
    if not isinstance(given, str):
        return given.ascii
    if isinstance(image, ImageBase64) or given[:5].lower() == "data:":
        return memoryview(given.encode(errors="replace"))
    return given


def decode_inlined(inline: memoryview, max_bytes: int) -> bytes:
    """The bytes in a `data:` URI or in bare base64. Padding may lack, lines may be broken, the alphabet may be the URL-safe one."""
    payload = inline
    if bytes(inline[:5]).lower() == b"data:":
        head, comma, _ = bytes(inline[:_MAX_HEAD]).partition(b",")
        payload = inline[len(head) + 1 :]
        if not comma or not head.rstrip().lower().endswith(b";base64"):
            raise InvalidImage("A data: URI must read data:image/...;base64,<data>.", code="invalid_base64_image")
    if len(payload) * 3 // 4 > max_bytes * 1.1:
        raise too_large(max_bytes)
    try:
        data = _decode(payload)
    except (binascii.Error, ValueError):
        raise InvalidImage("The image is not valid base64.", code="invalid_base64_image") from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def _decode(payload: memoryview) -> bytes:
    try:
        return pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        plain = unquote_to_bytes(bytes(payload)).translate(_CLEAN, _WHITE).rstrip(b"=")
        return pybase64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
