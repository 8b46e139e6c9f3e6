"""JPEGs without an end marker. Some cameras and scripts forget the marker, and browsers show these files.

The decoder waits for the marker, so it is added. The decoder then fills the missing part of a truncated file with grey, without an error.
Therefore the file is decoded twice, with different bytes before the marker. A whole file gives the same pixels both times, because the
decoder skips bytes after the last pixel. A truncated file does not, because the decoder takes the bytes for pixels.
"""

import io

from PIL import ImageChops, JpegImagePlugin

from llava_gateway.errors import InvalidImage
from llava_gateway.images.file_structure import EOI, FRAMES, MARKER, SOS

END = b"\xff\xd9"
NOISE = bytes((0xAA, 0xCC, 0xF0, 0x95)) * 16
"""Bytes without a marker. The first bit is one, because the decoder fills the missing part of a pixel with zeros."""
ALL_COEFFICIENTS = (1 << 64) - 1


def has_end(data: bytes) -> bool:
    """Return whether the JPEG has an end marker after its first scan. `data`: without metadata, whose thumbnails have end markers, too."""
    return data.rfind(END) >= 0


def with_end(data: bytes) -> bytes:
    """Return the JPEG with an end marker."""
    return data.rstrip(b"\xff") + END


def check_whole(data: bytes) -> None:
    """Raise InvalidImage if the JPEG is truncated. `data`: has no end marker."""
    data = data.rstrip(b"\xff")
    first, second = (JpegImagePlugin.JpegImageFile(io.BytesIO(data + rest + END)) for rest in (b"", NOISE))
    if not _has_all_scans(data) or ImageChops.difference(first, second).getbbox():
        raise InvalidImage("The image is damaged or cut short.")


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans have all coefficients of all components, with all their bits."""
    missing: dict[int, int] = {}
    at = 2
    while match := MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        payload = data[at + 2 : at + int.from_bytes(data[at : at + 2])]
        if marker == EOI:
            break
        if marker in FRAMES:
            missing = dict.fromkeys(payload[6::3], ALL_COEFFICIENTS)
        elif marker == SOS:
            first, last, bits = payload[-3:]
            for component in payload[1:-3:2] if bits & 15 == 0 else b"":
                missing[component] &= ~((2 << last) - (1 << first))
        at += 2 + len(payload)
    return bool(missing) and not any(missing.values())
