"""Image files whose decoding costs far more than their length or their declared size suggests."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
"""A scan of one component, without data."""


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    return encode(Image.new("RGB", size, "red"), "JPEG", **options)


def sequential_scans(count: int, size: tuple[int, int] = (1000, 1000)) -> bytes:
    """Return a sequential (not progressive) JPEG with many scans."""
    data = jpeg(size)
    return data[: data.index(b"\xff\xda")] + SCAN * count + b"\xff\xd9"


def hidden_scans(count: int) -> bytes:
    """Return a JPEG whose other scans follow a segment that looks like the end of the image."""
    data = jpeg((1000, 1000))
    comment = b"\xff\xfe\x00\x04\xff\xd9"
    return data[: data.index(b"\xff\xda")] + SCAN + comment + SCAN * (count - 1) + b"\xff\xd9"


def segments(count: int, name: bytes, payload: bytes) -> bytes:
    """Return a JPEG with many segments of one kind, such as EXIF."""
    data = jpeg()
    return data[:2] + (name + struct.pack(">H", 2 + len(payload)) + payload) * count + data[2:]


def exif_flood(count: int = 100_000) -> bytes:
    return segments(count, b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0")


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """Return a TIFF. `tags`: the type, count and value of each tag. `data` begins at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def rgb_tiff(width: int, height: int, tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """Return an RGB TIFF that is compressed with deflate."""
    tags = tags | {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 2), 277: (3, 1, 3)}
    return tiff(tags | {284: (3, 1, 1)}, data)


def zeros(count: int) -> bytes:
    compress = zlib.compressobj(9)
    return b"".join(compress.compress(bytes(min(1 << 20, count - at))) for at in range(0, count, 1 << 20)) + compress.flush()


def large_tile(side: int = 8192) -> bytes:
    """Return an image of 100 x 100 pixels that is stored in one much larger tile."""
    data = zeros(side * side * 3)
    return rgb_tiff(100, 100, {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, 8), 325: (4, 1, len(data))}, data)


def shared_pieces(count: int, side: int, *, tiled: bool) -> bytes:
    """Return a TIFF whose tiles or strips all refer to the same bytes of the file."""
    data = zeros(side * side * 3)
    data += bytes(-len(data) % 4)
    places = struct.pack(f"<{count}I", *[8] * count) + struct.pack(f"<{count}I", *[len(data)] * count)
    at = 8 + len(data)
    places_at, sizes_at = (4, count, at), (4, count, at + 4 * count)
    if tiled:
        tags = {322: (4, 1, side), 323: (4, 1, side), 324: places_at, 325: sizes_at}
    else:
        tags = {273: places_at, 278: (4, 1, side), 279: sizes_at}
    return rgb_tiff(side, side * count, tags, data + places)


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png_chunks(count: int, name: bytes, payload: bytes, *, before: bytes = b"IDAT", size: tuple[int, int] = (16, 16)) -> bytes:
    """Return a PNG with many chunks of one kind."""
    data = encode(Image.new("RGB", size, "red"), "PNG")
    at = data.index(before) - 4
    return data[:at] + png_chunk(name, payload) * count + data[at:]


def profile_flood(count: int = 5000) -> bytes:
    return png_chunks(count, b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))


def empty_idats(count: int = 1_500_000) -> bytes:
    """Return a PNG within all limits on sizes that keeps Pillow's loop over chunks busy for seconds."""
    return png_chunks(count, b"IDAT", b"")


def long_gif_comment(blocks: int = 9_000_000) -> bytes:
    """Return a GIF whose comment of one-byte blocks keeps Pillow busy for seconds before it finds the frame."""
    data = encode(Image.new("P", (16, 16)), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:at] + b"\x21\xfe" + b"\x01x" * blocks + b"\0" + data[at:]


def lying_avif(coded: tuple[int, int], declared: tuple[int, int], **options: Any) -> bytes:
    """Return an AVIF whose header declares another size than the coded one."""
    data = bytearray(encode(Image.new("RGB", coded, "red"), "AVIF", speed=10, quality=10, **options))
    at = -1
    while (at := data.find(b"ispe", at + 1)) >= 0:
        data[at + 8 : at + 16] = struct.pack(">II", *declared)
    return bytes(data)
