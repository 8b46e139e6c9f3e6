"""The sizes of the coded frames of an AVIF file.

The size that the file declares (`ispe`) does not bind a decoder. The size in the AV1 sequence header does. The boxes and items of AVIF are
specified in ISO/IEC 23008-12, the sequence header in section 5.5 of the AV1 specification.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise

from llava_gateway.errors import InvalidImage

Span = tuple[int, int]
"""The start and the end of a part of the file, as offsets in bytes."""
CONTAINERS = {b"meta": 4, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
"""The container boxes that are searched, and the number of bytes before the first box inside each."""
FRAMES_PER_IMAGE = 4
"""A file may have the image, its alpha channel, its gain map and its thumbnail, or the tiles of each."""
SEQUENCE_HEADER = 1
"""The OBU type of a sequence header."""


def check_av1_frames(data: bytes, max_pixels: int) -> None:
    """Raise InvalidImage if a frame has more than `max_pixels` pixels, or if all frames have more than FRAMES_PER_IMAGE times as many.

    A file that cannot be parsed is left to the decoder.
    """
    total = 0
    try:
        for frame in _coded_frames(data):
            for width, height in _frame_sizes(frame):
                total += width * height
                if width * height > max_pixels or total > FRAMES_PER_IMAGE * max_pixels:
                    raise InvalidImage(
                        f"The image has a coded frame of {width} x {height} pixels; at most {max_pixels // 1_000_000} million are allowed.",
                        code="image_too_large",
                    )
    except (struct.error, IndexError):
        return


def _coded_frames(data: bytes) -> Iterator[bytes]:
    """Yield the AV1 data of each item, and of the first sample of each track."""
    found = list(boxes(data, 0, len(data)))
    idat = next((start for name, start, _ in found if name == b"idat"), 0)
    kinds = {item: kind for name, start, end in found if name == b"iinf" for item, kind in _items(data, start, end)}
    for name, start, _ in found:
        if name == b"iloc":
            for item, spans in _locations(data, start, idat):
                if kinds.get(item) == b"av01":
                    yield b"".join(data[begin:end] for begin, end in spans)
    for (name, start, _), (_, size, _) in pairwise([box for box in found if box[0] in (b"stsz", b"stco", b"co64")]):
        chunks, sizes = (start, size) if name != b"stsz" else (size, start)
        offset = struct.unpack_from(">Q" if data[chunks - 4 : chunks] == b"co64" else ">I", data, chunks + 8)[0]
        fixed, _, first = struct.unpack_from(">III", data, sizes + 4)
        yield data[offset : offset + (fixed or first)]


def boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box, and the start and the end of its payload. Boxes inside containers are included."""
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = min(at + size if size else end, end)
        if stop < start:
            return
        yield name, start, stop
        if name in CONTAINERS:
            yield from boxes(data, start + CONTAINERS[name], stop)
        at = stop


def _items(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the type of each item in an `iinf` box."""
    for name, at, _ in boxes(data, start + (6 if data[start] == 0 else 8), end):
        if name == b"infe" and data[at] >= 2:
            number, _, kind = struct.unpack_from(">HH4s" if data[at] == 2 else ">IH4s", data, at + 4)
            yield number, kind


def _locations(data: bytes, start: int, idat: int) -> Iterator[tuple[int, list[Span]]]:
    """Yield the number and the spans of each item in an `iloc` box. `idat`: the offset of the `idat` box's payload."""
    version, sizes = data[start], data[start + 4 : start + 6]
    offset_size, length_size, base_size, index_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
    at = start + 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(data):
            raise IndexError
        return int.from_bytes(data[at - size : at])

    for _ in range(number(2 if version < 2 else 4)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size) + (idat if method == 1 else 0)
        spans = []
        for _ in range(number(2)):
            number(index_size if version else 0)
            offset, length = base + number(offset_size), number(length_size)
            spans.append((offset, offset + length if length else len(data)))
        if sum(end - begin for begin, end in spans) > len(data):
            raise InvalidImage("The parts of the image overlap in the file.")
        yield item, spans


def _frame_sizes(coded: bytes) -> Iterator[tuple[int, int]]:
    """Yield the width and the height in each sequence header."""
    at = 0
    while at < len(coded):
        header = coded[at]
        at += 2 if header & 4 else 1
        size, shift = 0, 0
        while header & 2:
            size |= (coded[at] & 127) << shift
            shift += 7
            at += 1
            if coded[at - 1] < 128 or shift > 56:
                break
        end = at + size if header & 2 else len(coded)
        if header >> 3 & 15 == SEQUENCE_HEADER:
            yield _max_frame_size(_BitReader(coded[at : min(end, at + 1024)]))
        at = end


class _BitReader:
    """Reads bits from the most significant to the least. Raises IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        """Skip an unsigned number in the variable-length code of section 4.10.3."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(min(zeros, 32))


def _max_frame_size(bits: _BitReader) -> tuple[int, int]:
    """Return the greatest width and height of a frame, from a sequence header."""
    bits.read(4)
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _BitReader) -> None:
    delay_bits = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval
            bits.skip_uvlc()
        if bits.read(1):  # decoder_model_info_present_flag
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read(1):
            bits.read(4)
