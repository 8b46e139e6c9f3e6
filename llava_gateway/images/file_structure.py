"""Estimates the cost of decoding an image file from its structure. The cost depends on the structure, not on the file's length.

`is_ordinary` is true for the files that almost every camera, browser and program writes. Their cost is proportional to their pixels and
bytes. The function reads only headers, takes microseconds, and returns False in doubt. `check_structure` refuses files that are built to
cost far more, which no ordinary program writes.
"""

import re
import struct

from llava_gateway.errors import InvalidImage
from llava_gateway.images.av1 import check_av1_frames
from llava_gateway.images.tiff import check_tiff

ORDINARY_PIXELS = 16_000_000
"""A JPEG of this size takes at most 0.4 CPU seconds. Its decoding in a thread cannot be stopped."""
ORDINARY_DECODED = 3 * ORDINARY_PIXELS
"""The greatest size of a PNG's pixels in bytes, at the file's own bit depth."""
ORDINARY_METADATA = 512 << 10
"""The greatest size of EXIF, XMP, profiles and text together, in bytes."""
ORDINARY_SEGMENTS = 64
"""The greatest number of segments of metadata and tables in a JPEG or a PNG."""
ORDINARY_EXIF = 64 << 10
"""The greatest size of an EXIF block, in bytes."""
ORDINARY_EXIF_ENTRIES = 256
"""The greatest number of EXIF entries. A parser may copy the whole block for each."""
MAX_SEGMENTS = 1024
"""The greatest number of segments of metadata. 20 MiB of metadata need 320 segments of a JPEG, which hold 64 KiB each."""
MAX_JPEG_SCANS = 64
"""Encoders write about ten scans. Each scan costs a pass over all pixels, and may take only ten bytes."""
MAX_SCANNED_PIXELS = 1_000_000_000
"""The greatest product of scans and pixels of a JPEG. It takes ten seconds, and allows 20 scans of an image of 50 megapixels."""

SOI, EOI, SOS, DHT, DQT, DRI, COM = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xFE
APP1, FIRST_APP, LAST_APP = 0xE1, 0xE0, 0xEF
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
"""The markers of frames (SOF). The markers between them are DHT, JPG and DAC."""
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
"""A marker that ends compressed data. Inside compressed data there are only stuffed zeros and restart markers."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""The number of channels by the colour type."""
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
PNG_DATA = (b"IDAT", b"fcTL", b"fdAT")
EXIF_AS_TEXT = b"Raw profile type exif"
"""The keyword of a text chunk that some programs read as EXIF."""


def is_ordinary(data: bytes, image_format: str | None) -> bool:
    """Return whether the cost of decoding the file is proportional to its pixels and bytes, and these are few."""
    try:
        if image_format == "JPEG":
            return _is_ordinary_jpeg(data)
        if image_format == "PNG":
            return _is_ordinary_png(data)
        return image_format == "WEBP" and _is_ordinary_webp(data)
    except (struct.error, IndexError):  # the file is truncated
        return False


def check_structure(data: bytes, image_format: str, max_pixels: int) -> None:
    """Raise InvalidImage if the file is built to cost far more than its pixels and bytes suggest."""
    if image_format == "JPEG":
        _check_jpeg(data)
    elif image_format == "PNG":
        _check_png(data)
    elif image_format == "TIFF":
        check_tiff(data, max_pixels)
    elif image_format in ("AVIF", "HEIC"):
        check_av1_frames(data, max_pixels)


def _is_ordinary_jpeg(data: bytes) -> bool:
    """Return whether the JPEG is baseline, its first scan has all components, and it has an end marker.

    The decoder then reads no other scan (see `has_multiple_scans` in libjpeg). A file without an end marker is decoded three times.
    """
    at, metadata, components, has_exif = 2, 0, 0, False
    for _ in range(ORDINARY_SEGMENTS):
        start, marker, length = struct.unpack_from(">BBH", data, at)
        payload, end = at + 4, at + 2 + length
        if start != 0xFF or length < 2:
            return False
        if marker == SOS:
            return components > 0 and data[payload] == components and data.rfind(b"\xff\xd9", end) >= 0
        if marker in (0xC0, 0xC1):
            precision, height, width, channels = struct.unpack_from(">BHHB", data, payload)
            if components or precision != 8 or not 0 < width * height <= ORDINARY_PIXELS:
                return False
            components = channels
        elif FIRST_APP <= marker <= LAST_APP or marker == COM:
            metadata += length
            if marker == APP1 and data.startswith(b"Exif\0\0", payload):
                if has_exif or not _is_ordinary_exif(data[payload + 6 : end]):
                    return False
                has_exif = True
        elif marker not in (DHT, DQT, DRI):
            return False
        if metadata > ORDINARY_METADATA:
            return False
        at = end
    return False


def _is_ordinary_png(data: bytes) -> bool:
    """Return whether the PNG is neither interlaced nor animated, and has little metadata."""
    length, name, width, height, depth, color, _, _, interlace = struct.unpack_from(">I4sIIBBBBB", data, 8)
    decoded = width * height * PNG_CHANNELS.get(color, 4) * (2 if depth == 16 else 1)
    if name != b"IHDR" or length != 13 or interlace or decoded > ORDINARY_DECODED:
        return False
    at, segments, metadata = 33, 0, 0
    for _ in range(ORDINARY_SEGMENTS + len(data) // 4096):  # encoders write pixels in chunks of 8 KiB and more
        length, name = struct.unpack_from(">I4s", data, at)
        payload = at + 8
        if name == b"IEND":
            return segments <= ORDINARY_SEGMENTS and metadata <= ORDINARY_METADATA
        if name == b"eXIf":
            if not _is_ordinary_exif(data[payload : payload + length]):
                return False
        elif name in (b"acTL", b"fcTL", b"fdAT") or (name in PNG_TEXT and data.startswith(EXIF_AS_TEXT, payload)):
            return False
        if name != b"IDAT":
            segments += 1
            metadata += length
        at = payload + length + 4
    return False


def _is_ordinary_webp(data: bytes) -> bool:
    """Return whether the WebP has one lossy frame and no alpha channel."""
    at, frames = 12, 0
    for _ in range(6):
        name, length = struct.unpack_from("<4sI", data, at)
        payload = at + 8
        if name == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, payload + 6)
            frames += 1
            if not data.startswith(b"\x9d\x01\x2a", payload + 3) or (width & 0x3FFF) * (height & 0x3FFF) > ORDINARY_PIXELS:
                return False
        elif name == b"VP8X":
            width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (payload + 4, payload + 7))
            if data[payload] & 0x12 or width * height > ORDINARY_PIXELS:  # alpha, animation
                return False
        elif name == b"EXIF":
            if not _is_ordinary_exif(data[payload : payload + length].removeprefix(b"Exif\0\0")):
                return False
        elif name not in (b"ICCP", b"XMP ") or length > ORDINARY_METADATA:
            return False
        at = payload + length + length % 2
        if at >= len(data):
            return frames == 1 and at <= len(data) + 1
    return False


def _is_ordinary_exif(block: bytes) -> bool:
    """Return whether the EXIF block is small and has few entries."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) > ORDINARY_EXIF:
        return False
    (directory,) = struct.unpack_from(f"{order}I", block, 4)
    (entries,) = struct.unpack_from(f"{order}H", block, directory)
    return int(entries) <= ORDINARY_EXIF_ENTRIES


def _check_jpeg(data: bytes) -> None:
    """Raise InvalidImage if the JPEG has too many scans or segments of metadata."""
    at, pixels, scans, segments = 2, 0, 0, 0
    while match := MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == EOI:
            return
        if marker == SOI:
            continue
        if marker in FRAMES and at + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 3)
            pixels = max(pixels, width * height)
        at += max(2, int.from_bytes(data[at : at + 2]))
        scans += marker == SOS
        segments += FIRST_APP <= marker <= LAST_APP or marker == COM
        if scans > MAX_JPEG_SCANS:
            raise InvalidImage(f"The JPEG has more than {MAX_JPEG_SCANS} scans; save it as a baseline JPEG.")
        if scans * pixels > MAX_SCANNED_PIXELS:
            raise InvalidImage(f"The JPEG has too many scans for its {pixels // 1_000_000} megapixels; save it as a baseline JPEG.")
        _check_segments("JPEG", segments)


def _check_png(data: bytes) -> None:
    """Raise InvalidImage if the PNG has too many chunks of metadata."""
    at, segments = 8, 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IEND":
            return
        segments += name not in PNG_DATA
        _check_segments("PNG", segments)
        at += 12 + length


def _check_segments(image_format: str, segments: int) -> None:
    if segments > MAX_SEGMENTS:
        raise InvalidImage(f"The {image_format} has more than {MAX_SEGMENTS} segments of metadata; save it without metadata.")
