"""A check of a TIFF's tiles and strips against the size of its image.

The decoder decodes whole tiles, however small the image is.
"""

import struct
from collections.abc import Sequence

from llava_gateway.errors import InvalidImage

WIDTH, LENGTH, STRIP_SIZES, STRIP_ROWS, TILE_WIDTH, TILE_LENGTH, TILE_SIZES = 256, 257, 279, 278, 322, 323, 325
SIZES_OF_TYPES = {3: ("H", 2), 4: ("I", 4)}
"""The format character of `struct` and the size in bytes of SHORT and LONG. Sizes and offsets have no other type."""
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

    def _unpack(self, layout: str, at: int) -> Sequence[int]:
        return struct.unpack_from(self._order + layout, self._data, at)
