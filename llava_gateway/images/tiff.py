"""The first directory of a TIFF: a check of the tiles and strips, and a copy of the file without the other tags.

The decoder decodes whole tiles, however small the image is. Therefore their size is checked against the size of the image.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from llava_gateway.errors import InvalidImage

WIDTH, LENGTH, DEPTH, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 266, 274, 277
STRIPS, STRIP_ROWS, STRIP_SIZES, TILE_WIDTH, TILE_LENGTH, TILES, TILE_SIZES = 273, 278, 279, 322, 323, 324, 325
PLANES, PREDICTOR, COLORMAP, INKS, EXTRA_SAMPLES, SAMPLE_FORMAT = 284, 317, 320, 332, 338, 339
FAX_OPTIONS, JPEG, YCBCR = (292, 293), (347, *range(512, 522)), range(529, 533)
PIXEL_TAGS = frozenset(
    (
        *(WIDTH, LENGTH, DEPTH, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES),
        *(STRIPS, STRIP_ROWS, STRIP_SIZES, TILE_WIDTH, TILE_LENGTH, TILES, TILE_SIZES),
        *(PLANES, PREDICTOR, COLORMAP, INKS, EXTRA_SAMPLES, SAMPLE_FORMAT, *FAX_OPTIONS, *JPEG, *YCBCR),
    )
)
"""The tags that describe the pixels."""
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
"""The values of PHOTOMETRIC for grey."""
FAX = (2, 3, 4)
"""The values of COMPRESSION for which a file without PHOTOMETRIC is read as WHITE_IS_ZERO. libtiff has this rule."""
UNSIGNED, SIGNED = 1, 2
"""The values of SAMPLE_FORMAT for whole numbers. Pillow reads unsigned numbers of 32 bits with both byte orders only as signed."""
SIZES_OF_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}
"""The format character of `struct` and the size in bytes of BYTE, SHORT and LONG. No other type is used here."""
PADDING = 1 << 24
"""The number of pixels by which tiles may exceed their image: one tile of 4096 x 4096."""


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Raise InvalidImage if the tiles or strips of the first image have far more pixels than the image, or overlap in the file.

    A file that cannot be parsed is left to the decoder.
    """
    try:
        tags = _Tags(data)
        width, height = tags.number(WIDTH), tags.number(LENGTH)
        tiled = TILE_WIDTH in tags.entries or TILE_LENGTH in tags.entries
        across = tags.number(TILE_WIDTH) if tiled else width
        down = tags.number(TILE_LENGTH) if tiled else min(tags.number(STRIP_ROWS, height), height)
        sizes = tags.numbers(TILE_SIZES if tiled else STRIP_SIZES)
    except (struct.error, KeyError, IndexError):
        return
    if width * height > max_pixels:
        return  # the image itself is refused for its size
    if not across or not down:
        raise InvalidImage("The TIFF has tiles without width or height.")
    padded = -(-width // across) * across * -(-height // down) * down
    if padded > 2 * width * height + PADDING:
        raise InvalidImage(
            f"The TIFF has tiles of {across} x {down} pixels for an image of {width} x {height}; save it with smaller tiles.",
            code="image_too_large",
        )
    if sum(sizes) > len(data):
        raise InvalidImage("The TIFF has tiles or strips that share their data; save it as a PNG.")


@dataclass(frozen=True, slots=True)
class CleanTiff:
    """A TIFF with one directory that has only the tags of the pixels. Grey has BLACK_IS_ZERO."""

    data: bytes
    orientation: int
    depth: int
    """The number of bits of a sample."""
    is_inverted: bool
    """Whether the original has WHITE_IS_ZERO."""


def clean_tiff(data: bytes) -> CleanTiff:
    """Return the TIFF without its metadata.

    Raises InvalidImage for signed samples, because programs disagree about their black and white. Raises struct.error, KeyError and
    IndexError for a damaged directory.
    """
    tags = _Tags(data)
    kept = {tag: tags.entry(tag) for tag in PIXEL_TAGS & tags.entries.keys()}
    samples, depth = tags.number(SAMPLES, 1), tags.number(DEPTH, 1)
    sample_format = tags.number(SAMPLE_FORMAT, UNSIGNED)
    if sample_format == SIGNED:
        raise InvalidImage("The TIFF has signed samples, which have no black and white; save it as a PNG.")
    if depth == 32 and sample_format == UNSIGNED:
        kept[SAMPLE_FORMAT] = tags.pack("HHIHH", SAMPLE_FORMAT, 3, 1, SIGNED, 0)
    default = WHITE_IS_ZERO if tags.number(COMPRESSION, 1) in FAX else BLACK_IS_ZERO
    photometric = tags.number(PHOTOMETRIC, default if samples == 1 else None)
    if photometric == WHITE_IS_ZERO or PHOTOMETRIC not in kept:
        kept[PHOTOMETRIC] = tags.pack("HHIHH", PHOTOMETRIC, 3, 1, BLACK_IS_ZERO, 0)
    start = data + bytes(len(data) % 2)
    directory = tags.pack("H", len(kept)) + b"".join(kept[tag] for tag in sorted(kept)) + bytes(4)
    try:
        orientation = tags.number(ORIENTATION, 1)
    except (struct.error, KeyError, IndexError):
        orientation = 1
    cleaned = b"".join((start[:4], tags.pack("I", len(start)), memoryview(start)[8:], directory))
    return CleanTiff(cleaned, orientation, depth, photometric == WHITE_IS_ZERO)


class _Tags:
    """The tags of the file's first directory. Raises struct.error at the end of the file, and KeyError for a missing or unknown tag."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data.startswith(b"II") else ">"
        (directory,) = self._unpack("I", 4)
        (count,) = self._unpack("H", directory)
        offsets = range(directory + 2, directory + 2 + 12 * count, 12)
        self.entries = {self._unpack("H", offset)[0]: offset for offset in offsets}

    def number(self, tag: int, default: int | None = None) -> int:
        """Return the tag's first number, or `default` if the tag is missing."""
        return default if default is not None and tag not in self.entries else self.numbers(tag)[0]

    def numbers(self, tag: int) -> Sequence[int]:
        """Return all numbers of the tag."""
        offset = self.entries[tag]
        kind, count = self._unpack("HI", offset + 2)
        letter, size = SIZES_OF_TYPES[kind]
        if count * size > len(self._data):
            raise struct.error("more numbers than the file has bytes")
        return self._unpack(f"{count}{letter}", offset + 8 if count * size <= 4 else self._unpack("I", offset + 8)[0])

    def entry(self, tag: int) -> bytes:
        """Return the tag's entry in the directory: 12 bytes."""
        (entry,) = struct.unpack_from("12s", self._data, self.entries[tag])
        return bytes(entry)

    def pack(self, layout: str, *values: int) -> bytes:
        """Return the numbers in the file's byte order. `layout`: as in `struct`."""
        return struct.pack(self._order + layout, *values)

    def _unpack(self, layout: str, at: int) -> Sequence[int]:
        return struct.unpack_from(self._order + layout, self._data, at)
