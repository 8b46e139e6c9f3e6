"""Removes metadata from image files before they are decoded, and reads their orientation.

Decoders parse metadata that the gateway does not use, and refuse the whole file if a part of it is wrong. Browsers show the picture. The
orientation follows the rules of Chromium: the first EXIF block counts, and neither XMP nor text turns a picture.
"""

import struct
import zlib
from collections.abc import Iterator

from llava_gateway.images.av1 import boxes

UPRIGHT = 1
"""The EXIF orientation of an image that needs no turning."""
ORIENTATION, SHORT = 0x0112, 3
"""The EXIF tag of the orientation, and the EXIF type of a number of two bytes."""
SOS, APP0, APP1, APP14, LAST_APP, COM = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
COLOR_SEGMENTS = {APP0: (b"JFIF\0", 14), APP14: (b"Adobe", 12)}
"""The segments that name the colour space of a JPEG: the beginning and the least length of each. Decoders ignore a shorter one."""
PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
"""The chunks without which a PNG cannot be decoded."""


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8, or 1 if the block has none or is damaged. `exif`: begins with the byte order."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for at in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if (tag, kind, number) == (ORIENTATION, SHORT, 1):
                return int(value) if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # the block ends before its last entry
        pass
    return UPRIGHT


def clean_jpeg(data: bytes) -> tuple[bytes, int]:
    """Return the JPEG without its metadata, and its orientation. Everything after a byte that is no segment is kept."""
    view = memoryview(data)
    kept, rest, exif = [view[:2]], 2, None
    for marker, start, end in _segments(data):
        rest = end
        if not (APP0 <= marker <= LAST_APP or marker == COM):
            kept.append(view[start:end])
            continue
        name, least = COLOR_SEGMENTS.get(marker, (b"", end))
        if data.startswith(name, start + 4) and end - start - 4 >= least:
            kept.append(view[start:end])
        elif marker == APP1 and exif is None and data.startswith(b"Exif\0", start + 4):
            exif = data[start + 10 : end]
    return b"".join((*kept, view[rest:])), exif_orientation(exif or b"")


def clean_png(data: bytes) -> tuple[bytes, int]:
    """Return the PNG without its metadata, and its orientation.

    Transparency and EXIF count only before the pixels and with the right checksum.
    """
    view = memoryview(data)
    kept, exif, has_palette, is_opaque, has_pixels = [view[:8]], None, False, True, False
    for name, at, end in _chunks(data):
        payload = view[at + 8 : end - 4]
        if name in PNG_PIXELS:
            kept.append(view[at:end])
            has_pixels = has_pixels or name == b"IDAT"
            has_palette = has_palette or name == b"PLTE"
        elif has_pixels or name not in (b"eXIf", b"tRNS") or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            continue
        elif name == b"eXIf" and exif is None:
            exif = bytes(payload)
        elif name == b"tRNS" and is_opaque and _is_transparency(len(payload), data[25], has_palette):
            kept.append(view[at:end])
            is_opaque = False
    return b"".join(kept), exif_orientation(exif or b"")


def clean_avif(data: bytes) -> bytes:
    """Return the AVIF without its EXIF. The decoder turns the image by its own properties (`irot` and `imir`)."""
    cleaned = bytearray(data)
    try:
        for name, start, end in boxes(data, 0, len(data)):
            for inner, at, _ in boxes(data, start + (6 if data[start] == 0 else 8), end) if name == b"iinf" else ():
                place = at + (10 if data[at] == 3 else 8)
                if inner == b"infe" and cleaned[place : place + 4] == b"Exif":
                    cleaned[place : place + 4] = b"skip"  # a type that no decoder knows
    except (struct.error, IndexError):  # the file is left to the decoder
        pass
    return bytes(cleaned)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the start and the end of each segment before the first scan of a JPEG."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a byte of padding
            at += 1
            continue
        if marker == SOS or marker < 0xC0 or not at + 4 <= end <= len(data):
            return
        yield marker, at, end
        at = end


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each chunk of a PNG."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at, min(at + 12 + length, len(data))
        at += 12 + length


def _is_transparency(size: int, color_type: int, has_palette: bool) -> bool:
    """Return whether a tRNS chunk of `size` bytes is valid for the colour type, and follows the palette."""
    return has_palette and 1 <= size <= 256 if color_type == 3 else size == {0: 2, 2: 6}.get(color_type)
