"""From the bytes of an image file to the square that CLIP sees, as Hugging Face's LLaVA processor makes it.

The format is sniffed, never believed. Size is checked before a pixel is decoded. Then: orient by EXIF, lay on white, resize the shortest
edge (bicubic) and crop the centre. A large JPEG is decoded at a half, quarter or eighth, never below twice the size that is needed.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from llava_gateway.errors import InvalidImage

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of what is checked here; threads share one list of filters

PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
MAX_ASPECT = 100
"""Longest over shortest side. CLIP resizes the shortest side up to its own, which a thread-thin picture turns into gigabytes."""
MAX_JPEG_SCANS = 64
"""Of a progressive JPEG. Encoders write about ten; each costs a pass over all pixels for as little as 59 bytes."""
TRANSFORM = "crop1"
"""Names this transform, in the digests of its results."""


@dataclass(frozen=True)
class Limits:
    side: int
    """Pixels of the square that comes out."""
    max_pixels: int


def prepare(data: bytes, limits: Limits, param: str) -> Image.Image:
    """RGB, `side` x `side`. InvalidImage if the file is not an image that we take."""
    try:
        image = _open(data, param)
        _check_size(image, limits, param)
        return _flatten(_fit(_premultiply(_orient(_load(image, limits.side))), limits.side))
    except InvalidImage:
        raise
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a broken file fails anywhere in its decoder, and in any way
        raise InvalidImage("The image is damaged or cut short.", param=param) from error


def sniff(data: bytes) -> str | None:
    """The format by the file's first bytes; None if it is not one that we take."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    return None


def _open(data: bytes, param: str) -> Image.Image:
    if not data:
        raise InvalidImage("The image file is empty.", param=param, code="empty_image_file")
    image_format = sniff(data)
    if image_format is None:
        raise InvalidImage(f"The image must be one of {', '.join(PLUGINS)}.", param=param, code="invalid_image_format")
    if image_format == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidImage(f"The JPEG has more than {MAX_JPEG_SCANS} scans.", param=param)
    return PLUGINS[image_format](io.BytesIO(data))


def _check_size(image: Image.Image, limits: Limits, param: str) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        megapixels = limits.max_pixels // 1_000_000
        raise InvalidImage(
            f"The image has {width} x {height} pixels; at most {megapixels} million are taken.", param=param, code="image_too_large"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(
            f"The image is {width} x {height} pixels; its sides may differ {MAX_ASPECT}-fold at most.", param=param, code="invalid_image"
        )


def _load(image: Image.Image, side: int) -> Image.Image:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scale = max((scale for scale in (8, 4, 2) if min(image.size) >= 2 * side * scale), default=1)
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
    image.load()
    return image


def _orient(image: Image.Image) -> Image.Image:
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def _premultiply(image: Image.Image) -> Image.Image:
    """RGB, or RGBa where something is transparent: its colours can be averaged without those of invisible pixels."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image if image.mode == "RGB" else image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits. (`convert` would clip everything above 255 to white.)"""
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")


def _fit(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    width, height = side * width // short, side * height // short
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
