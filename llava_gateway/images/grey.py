"""Grey images of more than 8 bits, and grey whose zero is white."""

from PIL import Image, ImageOps

from llava_gateway.errors import InvalidImage

OVERSHOOT = 0.1
"""How far a floating-point sample may be outside of 0 (black) to 1 (white). Filters that sharpen or resize leave a little."""


def is_deep(image: Image.Image) -> bool:
    """Return whether the image is grey with more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def to_eight_bits(image: Image.Image, depth: int = 16, *, is_inverted: bool = False) -> Image.Image:
    """Return a grey image in 8 bits, with black as zero. (`convert` alone would clip all values above 255 to white.)

    `depth`: the number of bits of a sample in the file. `is_inverted`: whether zero is white in the file. Raises InvalidImage for
    floating-point samples that have another range than 0 to 1.
    """
    if image.mode == "F":
        image = _scaled(image)
    elif image.mode == "I" and depth == 32:
        image = Image.frombytes("L", image.size, image.tobytes()[3::4])  # the highest byte of each unsigned number
    elif is_deep(image):
        greatest = (1 << depth) - 1
        image = image.convert("I").point(lambda value: value * (255 / greatest)).convert("L")
    return _inverted(image) if is_inverted else image


def _scaled(image: Image.Image) -> Image.Image:
    lowest, highest = image.getextrema()
    if not (isinstance(lowest, float) and isinstance(highest, float) and lowest >= -OVERSHOOT and highest <= 1 + OVERSHOOT):
        raise InvalidImage("The image has floating-point samples outside of 0 (black) to 1 (white); save it as a PNG.")
    return image.point(lambda value: value * 255 + 0.5).convert("L")


def _inverted(image: Image.Image) -> Image.Image:
    if image.mode == "LA":
        grey, alpha = image.split()
        return Image.merge("LA", (ImageOps.invert(grey), alpha))
    return ImageOps.invert(image.convert("L"))
