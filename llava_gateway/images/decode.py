"""From the bytes of an image file to the picture that the model sees.

The format is sniffed, never believed. Size is checked before a pixel is decoded. Then: orient by EXIF, lay on white, and make it
square: `crop` resizes the shortest edge (bicubic) and crops the centre, as Hugging Face's LLaVA processor does; `pad` pads to a square
with the model's mean colour and resizes, as the original LLaVA does; `resize` squashes. Or, for a model with grids, keep its shape and
shrink it to its place. A large JPEG is decoded at a half, quarter or eighth of its size, never below twice what is needed.

Worker processes import this file, so it imports little.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from llava_gateway.errors import InvalidImage
from llava_gateway.images.file_structure import check_structure, is_ordinary
from llava_gateway.images.geometry import Size, shrunk

if TYPE_CHECKING:
    from llava_gateway.settings import AspectRatio
    from llava_gateway.types import VisionConfig

warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of what is checked here; threads share one list of filters

PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "HEIC": "heic", "AVIF": "avif"}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
try:
    import pillow_heif
    from PIL import AvifImagePlugin

    pillow_heif.options.DECODE_THREADS = 1
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    PLUGINS |= {"HEIC": pillow_heif.HeifImageFile, "AVIF": AvifImagePlugin.AvifImageFile}
except ImportError:
    pass
MAX_ASPECT = 100
"""Longest over shortest side. CLIP resizes the shortest side up to its own, which a thread-thin picture turns into gigabytes."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation, what makes a picture stand upright."""
LYING = (5, 6, 7, 8)
"""EXIF's orientations of pictures whose width is their height once they stand upright."""
PAD_EXACT = 4096
"""Pixels of the longest side up to which a picture is padded as it is; a longer one is shrunk to this first, since a square of it might be
gigabytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be made of one picture, in plain values: they travel to a worker process as JSON."""

    sizes: dict[Size, Size]
    """The size that is made of a picture, by the size that it has once it stands upright."""
    aspect_ratio: "AspectRatio | None"
    """How it becomes square; None if it keeps its shape."""
    mean_color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Transform:
    vision: "VisionConfig"
    aspect_ratio: "AspectRatio"
    """How a picture becomes square, if the model has no grids."""

    @property
    def name(self) -> str:
        """For the digests of its results: to change what a transform does is to change its name."""
        how = "grids2" if self.vision.grids else f"{self.aspect_ratio}3"
        return f"{how}-{self.vision.digest}"

    def needs(self, size: Size) -> Size:
        """The width and height that are made of a picture of this size (of its smaller square, where one is cut out of it)."""
        if self.vision.grids:
            return shrunk(size, self.vision.grids, self.vision.tokens)
        return self.vision.side, self.vision.side

    def target(self, size: Size) -> Target:
        """For a picture whose file declares this size; whether it lies on its side is not known yet."""
        sizes = {upright: self.needs(upright) for upright in (size, (size[1], size[0]))}
        return Target(sizes, None if self.vision.grids else self.aspect_ratio, self.vision.mean_color)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image as its header describes it; no pixel is decoded. InvalidImage if it is not one that we take, too large, or made so that
    decoding it costs far more than its size says."""
    with _failing_as_damaged():
        image_format = _format(data)
        if not is_ordinary(data, image_format):
            check_structure(data, image_format, max_pixels)
        image = PLUGINS[image_format](io.BytesIO(data))
        _check_size(image.size, max_pixels)
        return image


def is_cheap(data: bytes) -> bool:
    """Whether the CPU time and the memory that the file takes are known to be small, so that a thread, which nothing can stop, may decode
    it."""
    return is_ordinary(data, sniff(data))


def prepare(image: Image.Image, transform: Transform) -> Image.Image:
    """RGB, as the model wants it, of an image that `open_image` has let through. InvalidImage if it is damaged."""
    return render(image, transform.target(image.size))


def render(image: Image.Image, target: Target) -> Image.Image:
    """RGB, as `target` wants it, of an image that `open_image` has let through. InvalidImage if it is damaged."""
    with _failing_as_damaged():
        upright, needed = _load(image, target)
        upright = _premultiply(upright)
        if target.aspect_ratio is not None:
            made = _flatten(_square(upright, needed[0], target))
        else:
            made = _flatten(upright if upright.size == needed else upright.resize(needed, Image.Resampling.BICUBIC))
        made.info = {}  # vLLM would turn the picture again by the orientation in its EXIF
        return made


def is_plain(image: Image.Image) -> bool:
    """Whether every program sees in the file what the model did: a JPEG or PNG of 8 bits, upright, with nothing transparent."""
    with _failing_as_damaged():
        known = isinstance(image, JpegImagePlugin.JpegImageFile | PngImagePlugin.PngImageFile)
        return known and not _is_deep(image) and not image.has_transparency_data and _is_upright(image)


def plain(image: Image.Image) -> Image.Image:
    """RGB in its own size, upright and on white, of an image that `open_image` has let through. InvalidImage if it is damaged."""
    with _failing_as_damaged():
        return _flatten(_premultiply(_orient(image)))


@contextmanager
def _failing_as_damaged() -> Iterator[None]:
    try:
        yield
    except InvalidImage:
        raise
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a broken file fails anywhere in its decoder, and in any way
        raise InvalidImage("The image is damaged or cut short.") from error


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
    if data[4:8] == b"ftyp":  # ISO/IEC 14496-12: a box of its length, its name, the major brand, a version, and compatible brands
        brands = data[8 : min(int.from_bytes(data[:4]), 256)]
        return "AVIF" if b"avif" in brands or b"avis" in brands else "HEIC" if any(brand in brands for brand in HEIC_BRANDS) else None
    return None


def extension(data: bytes) -> str:
    """What the name of such a file ends with. The data is of an image that `open_image` has let through."""
    return EXTENSIONS[sniff(data) or ""]


def _format(data: bytes) -> str:
    if not data:
        raise InvalidImage("The image file is empty.", code="empty_image_file")
    image_format = sniff(data)
    if image_format is None:
        raise InvalidImage(f"The image must be one of {', '.join(PLUGINS)}.", code="invalid_image_format")
    if image_format not in PLUGINS:
        raise InvalidImage(
            f"{image_format} images are not taken here; send a JPEG or PNG. (They are where llava-gateway[heic] is installed.)",
            code="unsupported_image_media_type",
        )
    return image_format


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        megapixels = max_pixels // 1_000_000
        raise InvalidImage(f"The image has {width} x {height} pixels; at most {megapixels} million are taken.", code="image_too_large")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(f"The image is {width} x {height} pixels; its sides may differ {MAX_ASPECT}-fold at most.", code="invalid_image")


def _load(image: Image.Image, target: Target) -> tuple[Image.Image, Size]:
    """The picture upright, and the size that is to be made of it."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        image.load()
        upright = _orient(image)
        if upright.size not in target.sizes:
            raise InvalidImage("The image has not the size that its file declares.")
        return upright, target.sizes[upright.size]
    lies = image.getexif().get(ExifTags.Base.Orientation) in LYING
    width, height = image.size
    needed = target.sizes[(height, width) if lies else (width, height)]
    across, down = reversed(needed) if lies else needed
    spare = min(width / across, height / down)
    scale = max((scale for scale in (8, 4, 2) if spare >= 2 * scale), default=1)
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
    image.load()
    return _orient(image), needed


def _orient(image: Image.Image) -> Image.Image:
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _is_upright(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) == 1)


def _premultiply(image: Image.Image) -> Image.Image:
    """RGB, or RGBa where something is transparent: its colours can be averaged without those of invisible pixels."""
    if _is_deep(image):
        image = _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image if image.mode == "RGB" else image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether its grey has more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits. (`convert` would clip everything above 255 to white.)"""
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")


def _square(image: Image.Image, side: int, target: Target) -> Image.Image:
    if target.aspect_ratio == "pad" and image.width != image.height:
        if max(image.size) > PAD_EXACT:
            image.thumbnail((PAD_EXACT, PAD_EXACT), Image.Resampling.BICUBIC)
        width, height = image.size
        color = target.mean_color if image.mode == "RGB" else (*target.mean_color, 255)
        square = Image.new(image.mode, (max(width, height),) * 2, color)
        square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
        image = square
    if target.aspect_ratio != "crop":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    short = min(image.size)
    width, height = side * image.width // short, side * image.height // short
    left, top = (width - side) // 2, (height - side) // 2
    if short < 2 * side:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    # In one, so that what would be cropped away is never computed. (Pillow rounds the box; at this scale that is not seen.)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
