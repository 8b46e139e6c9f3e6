"""Pixels of a BMP in which masks name the bits of each channel. Pillow knows only the most common masks."""

import struct
from typing import Any, NamedTuple

from PIL import Image, ImageFile, ImageMath

from llava_gateway.errors import InvalidImage

HEADER, COMPRESSION, MASKS = 14, 30, 54
"""The offsets of the image header, of its field `compression`, and of the masks. The masks follow a header of 40 bytes, or are in it."""
RAW, BITFIELDS, ALPHA_BITFIELDS = 0, 3, 6
"""The values of `compression` for uncompressed pixels."""
ALPHA_HEADER, V4_HEADER = 56, 108
"""The sizes of the first header with a mask for alpha, and of the first header whose mask for alpha counts for RAW pixels, too."""
ROWS = 64
"""The number of rows that are decoded at once."""
DECODER = "bmp_masks"
"""The name of the decoder for Pillow."""


class Masks(NamedTuple):
    """The bits of each channel in a pixel."""

    red: int
    green: int
    blue: int
    alpha: int
    """Zero if the image has no transparency."""
    bits: int
    """The size of a pixel: 16 or 32."""


class MaskDecoder(ImageFile.PyDecoder):
    """Decodes pixels with masks. Its arguments: the masks, the bytes of a row, and the direction of the rows."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Read all rows from the file and set the image."""
        assert self.fd
        masks, stride, direction = self.args
        width, height = self.state.xsize, self.state.ysize
        pixels = bytearray()
        for row in range(0, height, ROWS):
            rows = min(ROWS, height - row)
            block = Image.frombytes("I", (width, rows), self.fd.read(stride * rows), "raw", f"I;{masks.bits}", stride)
            pixels += Image.merge(self.mode, [_channel(block, mask) for mask in masks[: len(self.mode)]]).tobytes()
        self.set_as_raw(bytes(pixels), self.mode, (0, direction))
        return -1, 0


Image.register_decoder(DECODER, MaskDecoder)


def pixel_masks(data: bytes) -> Masks | None:
    """Return the masks of a BMP, or None if it has none. Raises InvalidImage if a mask cannot be used."""
    (size,) = struct.unpack_from("<I", data, HEADER)
    if size < 40:
        return None
    bits, compression = struct.unpack_from("<HI", data, HEADER + 14)
    if bits in (16, 32) and compression in (BITFIELDS, ALPHA_BITFIELDS):
        red, green, blue = struct.unpack_from("<III", data, MASKS)
    elif bits == 32 and compression == RAW and size >= V4_HEADER:
        red, green, blue = 0xFF0000, 0xFF00, 0xFF
    else:
        return None
    has_alpha = size >= ALPHA_HEADER or compression == ALPHA_BITFIELDS
    (alpha,) = struct.unpack_from("<I", data, MASKS + 12) if has_alpha else (0,)
    for mask in (red, green, blue, alpha):
        if mask >> bits or mask & (mask + (mask & -mask)):
            raise InvalidImage("The BMP has a mask that is not one run of bits; save it as a PNG.")
    return Masks(red, green, blue, alpha, bits)


def with_raw_pixels(data: bytes) -> bytes:
    """Return the BMP as Pillow reads it without masks."""
    return data[:COMPRESSION] + struct.pack("<I", RAW) + data[COMPRESSION + 4 :]


def _channel(pixels: Image.Image, mask: int) -> Image.Image:
    """Return a channel in 8 bits. `pixels`: whole numbers."""
    if not mask:
        return Image.new("L", pixels.size)
    shift = (mask & -mask).bit_length() - 1
    bits = mask.bit_length() - shift
    shift, bits = shift + max(0, bits - 8), min(bits, 8)
    greatest = (1 << bits) - 1
    values: Image.Image = ImageMath.lambda_eval(lambda images: (images["pixels"] >> shift) & greatest, pixels=pixels)
    return values.convert("L").point([min(255, (value * 255 + greatest // 2) // greatest) for value in range(256)])
