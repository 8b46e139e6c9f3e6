"""Image files that cameras, converters and screenshot programs write, and that decoders refuse or misread.

The files in `encoded_images` come from cjpeg, cwebp, avifenc, heif-enc, tiffcp, ImageMagick and sharp (libvips). The part of a name before
the first underscore is the program, the rest its options.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from helpers.hostile_files import encode
from PIL import Image

from llava_gateway.demo.images import COLORS, Grid, draw

GRID: Grid = ("red", "blue", "green", "orange")
TOP: Grid = ("red", "blue", "white", "white")
TURNED: Grid = ("blue", "orange", "red", "green")
"""GRID, turned to the left by a quarter."""
GREY: Grid = ("black", "white", "white", "black")
SIDE = 96
ENCODED = Path(__file__).parent / "encoded_images"
IMAGE, LEFT = draw(GRID, (SIDE, SIDE)), draw(TURNED, (SIDE, SIDE))
JPEG, LEFT_JPEG = (encode(image, "JPEG", quality=95) for image in (IMAGE, LEFT))
PNG = encode(IMAGE, "PNG")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
ORIENTATION, SHORT, LONG, SRATIONAL, FLOAT, SIGNED = 0x0112, 3, 4, 10, 3, 2
Tag = tuple[int, int, int, int]
"""The tag, the type, the count and the value or offset."""


def exif(*tags: Tag, orientation: int = 6, order: str = "<") -> bytes:
    """Return an EXIF block with an orientation and more tags. The bytes after the directory are 32 times 0xFF."""
    entries = sorted(((ORIENTATION, SHORT, 1, orientation), *tags))
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return start + b"".join(_entry(tag, order) for tag in entries) + bytes(4) + b"\xff" * 32


def _entry(tag: Tag, order: str) -> bytes:
    """Return an entry of a directory: 12 bytes."""
    if tag[1:3] == (SHORT, 1):
        return struct.pack(f"{order}HHIHH", *tag, 0)
    return struct.pack(f"{order}HHII", *tag)


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload


def jpeg(*segments: tuple[int, bytes], data: bytes = JPEG) -> bytes:
    """Return a JPEG with more segments after the JFIF segment."""
    return data[:20] + b"".join(segment(*each) for each in segments) + data[20:]


def jpeg_exif(block: bytes, data: bytes = LEFT_JPEG) -> bytes:
    return jpeg((0xE1, b"Exif\0\0" + block), data=data)


def chunk(name: bytes, payload: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + payload) if checksum is None else checksum
    return struct.pack(">I4s", len(payload), name) + payload + struct.pack(">I", checksum)


def png(name: bytes, payload: bytes, checksum: int | None = None, *, before: bytes = b"IDAT", data: bytes = PNG) -> bytes:
    """Return a PNG with one more chunk."""
    at = data.index(before) - 4
    return data[:at] + chunk(name, payload, checksum) + data[at:]


def webp(name: bytes, payload: bytes) -> bytes:
    """Return a WebP in the extended format with one more chunk."""
    side = (SIDE - 1).to_bytes(3, "little")
    image = encode(IMAGE, "WEBP", quality=95)[12:]
    body = b"WEBPVP8X" + struct.pack("<II", 10, 8) + side * 2 + image + struct.pack("<4sI", name, len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(pixels: bytes, tags: dict[int, Tag], order: str = "<", rest: bytes = b"") -> bytes:
    """Return a TIFF of SIDE x SIDE pixels in one strip. `rest`: bytes after the pixels, for tags that refer to them."""
    defaults = ((256, LONG, 1, SIDE), (257, LONG, 1, SIDE), (259, SHORT, 1, 1), (273, LONG, 1, 8), (279, LONG, 1, len(pixels)))
    entries = {tag[0]: tag for tag in defaults} | tags
    packed = b"".join(_entry(tag, order) for tag in sorted(entries.values()))
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(pixels) + len(rest))
    return start + pixels + rest + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)


def grey_tiff(bits: int, sample_format: int = 1, *, white_is_zero: bool = False, order: str = "<", deflate: bool = False) -> bytes:
    """Return GREY as a TIFF. `sample_format`: 1 for unsigned numbers, SIGNED or FLOAT."""
    levels = np.asarray(draw(GREY, (SIDE, SIDE)).convert("L"), np.float64) / 255
    levels = 1 - levels if white_is_zero else levels
    if sample_format == FLOAT:
        pixels = levels.astype(f"{order}f{bits // 8}").tobytes()
    elif bits >= 8 and bits != 12:
        pixels = np.round(levels * (2**bits - 1)).astype(f"{order}u{bits // 8}").tobytes()
    else:
        rows = np.round(levels * (2**bits - 1)).astype(int)
        pixels = b"".join(int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(SIDE * bits // 8) for row in rows)
    tags = {258: bits, 259: 8 if deflate else 1, 262: int(not white_is_zero), 277: 1, 339: sample_format}
    return tiff(zlib.compress(pixels) if deflate else pixels, {tag: (tag, SHORT, 1, value) for tag, value in tags.items()}, order)


def rgb_tiff(*tags: Tag, rest: bytes = b"") -> bytes:
    """Return GRID as a TIFF with more tags. They find `rest` at byte 8 + 3 * SIDE * SIDE + 6."""
    depth = struct.pack("<3H", 8, 8, 8)
    at = 8 + 3 * SIDE * SIDE
    known = ((258, SHORT, 3, at), (262, SHORT, 1, 2), (277, SHORT, 1, 3))
    return tiff(IMAGE.tobytes(), {tag[0]: tag for tag in (*known, *tags)}, rest=depth + rest)


def bmp(masks: tuple[int, int, int, int], bits: int = 32, *, header: int = 124, alpha: int = 255, compression: int = 3) -> bytes:
    """Return GRID as a BMP with masks for red, green, blue and alpha. `alpha`: of the lower half, or 0 for all of the image."""
    channels = np.dstack((np.asarray(IMAGE, np.float64), np.full((SIDE, SIDE), alpha or 0)))
    if alpha:
        channels[: SIDE // 2, :, 3] = 255
    pixels = np.zeros((SIDE, SIDE), np.uint64)
    for index, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        pixels |= np.round(channels[:, :, index] * (mask >> shift) / 255).astype(np.uint64) << np.uint64(shift)
    data = pixels[::-1].astype(f"<u{bits // 8}").tobytes()
    fields = struct.pack("<IiiHHIIiiII", header, SIDE, SIDE, 1, bits, compression, len(data), 0, 0, 0, 0)
    fields += struct.pack("<4I", *masks)[: {40: 12, 52: 12}.get(header, 16) if compression != 6 else 16]
    fields += bytes(max(0, header - len(fields)))
    return b"BM" + struct.pack("<IHHI", 14 + len(fields) + len(data), 0, 0, 14 + len(fields)) + fields + data


def gif(screen: tuple[int, int], at: tuple[int, int] = (0, 0), *, background: int = 0, size: tuple[int, int] = (SIDE, SIDE // 2)) -> bytes:
    """Return a GIF whose first frame is the top of GRID. `size`: of the frame. `background`: the screen's background colour."""
    data = bytearray(encode(IMAGE.crop((0, 0, *size)).convert("P", palette=Image.Palette.ADAPTIVE, colors=8), "GIF"))
    frame = 13 + (3 << (data[10] & 7) + 1)
    assert data[frame : frame + 1] == b","
    data[6:10], data[11] = struct.pack("<HH", *screen), background
    data[frame + 1 : frame + 5] = struct.pack("<HH", *at)
    return bytes(data)


ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
AT = 8 + 3 * SIDE * SIDE + 6
DAMAGED_METADATA: dict[str, bytes] = {
    "resolution of -1/0.jpg": jpeg_exif(exif((0x011A, SRATIONAL, 1, 38))),
    "resolution unit as a byte.jpg": jpeg_exif(exif((0x0128, 1, 1, 2))),
    "offset beyond the end.jpg": jpeg_exif(exif((0x010F, 2, 60_000, 60_000))),
    "big-endian exif.jpg": jpeg_exif(exif(order=">")),
    "truncated exif.jpg": jpeg_exif(exif()[:24]),
    "second exif.jpg": jpeg((0xE1, b"Exif\0\0" + exif()), (0xE1, b"Exif\0\0" + exif(orientation=3)), data=LEFT_JPEG),
    "garbage as exif.jpg": jpeg_exif(b"garbage", JPEG),
    "orientation 9.jpg": jpeg_exif(exif(orientation=9), JPEG),
    "short profile.jpg": jpeg((0xE2, b"ICC_PROFILE\0")),
    "short Adobe.jpg": jpeg((0xEE, b"Adobe\0")),
    "short JFIF.jpg": JPEG[:2] + segment(0xE0, b"JFIF\0") + JPEG[20:],
    "short Photoshop.jpg": jpeg((0xED, b"Photoshop 3.0\x008BIM")),
    "XMP that turns.jpg": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "profile with a wrong checksum.png": png(b"iCCP", b"x\0\0" + zlib.compress(bytes(300)), 7),
    "profile of 2 MB.png": png(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))),
    "workflow of 1.5 MB.png": png(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(1_500_000)), before=b"IEND"),
    "garbage as exif.png": png(b"eXIf", b"\0\x08\0\x02garbage"),
    "exif with a wrong checksum.png": png(b"eXIf", exif(), 7),
    "exif after the pixels.png": png(b"eXIf", exif(), before=b"IEND"),
    "short chromaticities.png": png(b"cHRM", bytes(4)),
    "short gamma.png": png(b"gAMA", b""),
    "short transparency.png": png(b"tRNS", b"\0"),
    "transparency with a wrong checksum.png": png(b"tRNS", struct.pack(">3H", *COLORS["red"]), 7),
    "transparency after the pixels.png": png(b"tRNS", struct.pack(">3H", *COLORS["red"]), before=b"IEND"),
    "short animation.png": png(b"acTL", b"x"),
    "chunk with an odd name.png": png(b"a\0b1", b"x"),
    "truncated text.png": PNG[:-12] + struct.pack(">I4s", 500, b"tEXt") + b"abc",
    "exif as text.png": png(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(exif()) + exif().hex().encode())),
    "XMP that turns.png": png(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "garbage as exif.webp": webp(b"EXIF", b"garbage "),
    "garbage as profile.webp": webp(b"ICCP", b"garbage "),
    "XMP as ASCII.tif": rgb_tiff((700, 2, len(XMP), AT), rest=XMP),
    "XMP as LONG.tif": rgb_tiff((700, LONG, len(XMP) // 4, AT), rest=XMP),
    "XMP that turns.tif": rgb_tiff((700, 1, len(XMP), AT), rest=XMP),
    "garbage as exif.tif": rgb_tiff((34665, LONG, 1, AT), rest=b"\xff" * 99),
    "garbage as profile.tif": rgb_tiff((34675, LONG, 5, AT), rest=bytes(20)),
    "resolution of -1/0.tif": rgb_tiff((282, SRATIONAL, 1, AT), (283, 2, 1, 0), (296, 1, 1, 9), rest=b"\xff\xff\xff\xff" + bytes(4)),
}
"""Files with damaged or misleading metadata. All show GRID."""
UNENDED: dict[str, bytes] = {
    f"{ending} {kind}.jpg": encode(IMAGE, "JPEG", quality=95, **options)[:-2] + rest
    for kind, options in (("baseline", {}), ("progressive", {"progressive": True}), ("with restarts", {"restart_marker_rows": 1}))
    for ending, rest in (("no end", b""), ("half an end", b"\xff"), ("zeros for an end", bytes(100)))
}
"""JPEGs without an end marker. All show GRID."""
EMPTY_ALPHA: dict[str, bytes] = {
    "empty alpha.bmp": bmp(ARGB, alpha=0),
    "empty alpha of 1 bit.bmp": bmp((0x7C00, 0x3E0, 0x1F, 0x8000), 16, alpha=0),
    "empty alpha after a short header.bmp": bmp(ARGB, header=40, compression=6, alpha=0),
}
"""BMPs whose alpha channel is zero everywhere. They show GRID; Chromium shows nothing."""
OTHER: dict[str, tuple[bytes, Grid]] = {
    "RGBX.bmp": (bmp((0xFF000000, 0xFF0000, 0xFF00, 0)), GRID),
    "RGBX with a short header.bmp": (bmp((0xFF000000, 0xFF0000, 0xFF00, 0), header=40), GRID),
    "565.bmp": (bmp((0xF800, 0x7E0, 0x1F, 0), 16, header=56), GRID),
    "BGR 565.bmp": (bmp((0x1F, 0x7E0, 0xF800, 0), 16, header=52), GRID),
    "555.bmp": (bmp((0x7C00, 0x3E0, 0x1F, 0), 16, header=40), GRID),
    "444.bmp": (bmp((0xF00, 0xF0, 0xF, 0), 16), GRID),
    "1555.bmp": (bmp((0x7C00, 0x3E0, 0x1F, 0x8000), 16, alpha=1), TOP),
    "10 bits.bmp": (bmp((0x3FF00000, 0xFFC00, 0x3FF, 0)), GRID),
    "11, 11 and 10 bits.bmp": (bmp((0x7FF, 0x3FF800, 0xFFC00000, 0)), GRID),
    "alpha.bmp": (bmp(ARGB, alpha=1), TOP),
    "alpha after a short header.bmp": (bmp(ARGB, header=40, compression=6, alpha=1), TOP),
    "alpha without masks.bmp": (bmp(ARGB, compression=0, alpha=1), TOP),
    "no alpha in a short header.bmp": (bmp(ARGB, header=40, compression=0, alpha=1), GRID),
    "upper half.gif": (gif((SIDE, SIDE)), TOP),
    "upper half on a background.gif": (gif((SIDE, SIDE), background=3), TOP),
    "lower half.gif": (gif((SIDE, SIDE), (0, SIDE // 2)), ("white", "white", "red", "blue")),
    "left half.gif": (gif((SIDE, SIDE), size=(SIDE // 2, SIDE)), ("red", "white", "green", "white")),
    "larger than its screen.gif": (gif((8, 8), size=(SIDE, SIDE)), GRID),
}
GREYS: dict[str, bytes] = {
    f"grey of {bits} bits, {'white' if white else 'black'} is zero, {order}, {'deflate' if deflate else 'raw'}.tif": grey_tiff(
        bits, sample_format, white_is_zero=white, order=order, deflate=deflate
    )
    for bits, sample_format in ((1, 1), (2, 1), (4, 1), (8, 1), (12, 1), (16, 1), (32, 1), (32, FLOAT))
    for white in (False, True)
    for order in ("<" if bits == 12 else "<>")
    for deflate in (False, True)
}
"""TIFFs of every depth that is read. All show GREY."""
SHOWN = {"_bottom": TOP, "_upper": TOP, "_grey": GREY, ".heic": TURNED}
"""The picture by a part of the name of an encoded file."""
ENCODED_FILES: dict[str, tuple[bytes, Grid]] = {
    path.name: (path.read_bytes(), next((grid for part, grid in SHOWN.items() if part in path.name), GRID))
    for path in sorted(ENCODED.iterdir())
}
ALL: dict[str, tuple[bytes, Grid]] = {
    **{name: (data, GRID) for name, data in (DAMAGED_METADATA | UNENDED | EMPTY_ALPHA).items()},
    **{name: (data, GREY) for name, data in GREYS.items()},
    **OTHER,
    **ENCODED_FILES,
}
