"""From the bytes of an image file to the image that the model sees.

The format is detected from the file's first bytes; a declared type is ignored. The size is checked before a pixel is decoded. Then the
image is oriented by EXIF, composed on white, and made square:

- `crop` resizes the shortest edge (bicubic) and crops the centre, as Hugging Face's LLaVA processor does.
- `pad` pads to a square with the model's mean colour and resizes, as the original LLaVA does.
- `resize` changes the aspect ratio.

For a model with grids the image keeps its shape and is shrunk to its size on the grid. A large JPEG is decoded at a half, a quarter or an
eighth of its size, but never below twice the size that is needed.

Worker processes import this file, so its imports are few.
"""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, JpegImagePlugin, PngImagePlugin

from llava_gateway.errors import InvalidImage
from llava_gateway.images.file_structure import check_structure, is_ordinary
from llava_gateway.images.geometry import Size, shrunk
from llava_gateway.images.grey import is_deep, to_eight_bits
from llava_gateway.images.metadata import UPRIGHT
from llava_gateway.images.plugins import PLUGINS

if TYPE_CHECKING:
    from llava_gateway.model_info import VisionConfig
    from llava_gateway.settings import AspectRatio

# Pillow warns about sizes, which are checked here. The filter is set once, because all threads share the list of filters.
warnings.filterwarnings("ignore", module=r"PIL\.")

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "HEIC": "heic", "AVIF": "avif"}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
MAX_ASPECT = 100
"""The greatest ratio of the longest side to the shortest.

CLIP resizes the shortest side up to the model's, so a very thin image would need gigabytes."""
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by its EXIF orientation."""
ROTATED = (5, 6, 7, 8)
"""The EXIF orientations that exchange width and height."""
MAX_PADDED_SIDE = 4096
"""The longest side, in pixels, that is padded without shrinking. A longer side is shrunk to this first, because the square might need
gigabytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """The wanted form of one image. The values are plain, because they are sent to a worker process as JSON."""

    sizes: dict[Size, Size]
    """The output size, by the size of the upright image."""
    aspect_ratio: "AspectRatio | None"
    """How the image becomes square; None if it keeps its shape."""
    mean_color: tuple[int, int, int]
    """The colour of the padding: red, green and blue, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Transform:
    """How images are prepared for one model."""

    vision: "VisionConfig"
    aspect_ratio: "AspectRatio"
    """How images become square, if the model has no grids."""

    @property
    def name(self) -> str:
        """A name for cache keys. The number in it must be increased when the results of the transform change."""
        method = "grids4" if self.vision.grids else f"{self.aspect_ratio}5"
        return f"{method}-{self.vision.digest}"

    def output_size(self, size: Size) -> Size:
        """Return the width and height of the prepared image, in pixels. `size`: of the upright image."""
        if self.vision.grids:
            return shrunk(size, self.vision.grids, self.vision.tokens)
        return self.vision.side, self.vision.side

    def target(self, size: Size) -> Target:
        """Return the target for an image whose file declares this size. Both orientations are included, because EXIF is not read yet."""
        sizes = {upright: self.output_size(upright) for upright in (size, (size[1], size[0]))}
        return Target(sizes, None if self.vision.grids else self.aspect_ratio, self.vision.mean_color)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image as its header describes it. No pixel is decoded.

    Raises InvalidImage if the format is not accepted, if the image has more than `max_pixels` pixels, or if its decoding would cost far
    more than its size suggests.
    """
    with _report_as_damaged():
        image_format = _detect_format(data)
        if not is_ordinary(data, image_format):
            check_structure(data, image_format, max_pixels)
        image = PLUGINS[image_format](io.BytesIO(data))
        _check_size(image.size, max_pixels)
        return image


def is_cheap(data: bytes) -> bool:
    """Return whether the CPU time and the memory of the decoding are known to be small.

    Only such a file may be decoded in a thread, because a thread cannot be stopped.
    """
    return is_ordinary(data, sniff(data))


def prepare(image: Image.Image, data: bytes, transform: Transform) -> Image.Image:
    """Return the image as `transform` wants it, in RGB, in the fastest way that this process has.

    `image`: from `open_image`. `data`: the image's file. Raises InvalidImage if the file is damaged.
    """
    target = transform.target(image.size)
    with _report_as_damaged():
        rendered = _render_vectorised(image, data, target) if "torch" in sys.modules else None
    return rendered or render(image, target)


def render(image: Image.Image, target: Target) -> Image.Image:
    """Return the image as `target` wants it, in RGB. `image`: from `open_image`. Raises InvalidImage if the file is damaged."""
    with _report_as_damaged():
        upright, size = _load(image, target)
        upright = _premultiply(upright)
        if target.aspect_ratio is not None:
            rendered = _flatten(_make_square(upright, size[0], target))
        else:
            rendered = _flatten(upright if upright.size == size else upright.resize(size, Image.Resampling.BICUBIC))
        rendered.info = {}  # vLLM would orient the image a second time by its EXIF
        return rendered


def _render_vectorised(image: Image.Image, data: bytes, target: Target) -> Image.Image | None:
    """Return the image as `target` wants it. None: Pillow has to do it, because of the image's mode, its size or the padding."""
    if target.aspect_ratio == "pad" or image.mode != "RGB":  # Pillow pads exactly as the original LLaVA
        return None
    from llava_gateway.images import vectorised  # not in worker processes: they have no torch, and its imports take memory

    if isinstance(image, JpegImagePlugin.JpegImageFile):
        pixels = vectorised.decode_jpeg(data, image.size, _scale(image, target.sizes[_upright_size(image)]))
    else:
        image.load()
        pixels = None if image.has_transparency_data else vectorised.to_pixels(image)
    output_size = target.sizes.get(_upright_size(image))
    if pixels is None or output_size is None:
        return None
    size = output_size
    if target.aspect_ratio == "crop":
        width, height = _upright_size(image)
        short = min(width, height)
        size = size[0] * width // short, size[1] * height // short
    is_rotated = _orientation(image) in ROTATED
    resized = vectorised.resize(pixels, (size[1], size[0]) if is_rotated else size)
    upright = vectorised.turn_upright(resized, _orientation(image))  # after resizing: turning the large image takes longer
    return vectorised.to_image(vectorised.crop(upright, output_size))


def to_plain(image: Image.Image) -> Image.Image:
    """Return the image in RGB and in its own size, upright and on white.

    `image`: from `open_image`. Raises InvalidImage if the file is damaged.
    """
    with _report_as_damaged():
        image.load()
        return _flatten(_premultiply(_orient(image)))


def shows_same(data: bytes, plain: Image.Image) -> bool:
    """Return whether a program that uses Pillow reads a JPEG or PNG as the model saw it. `plain`: from `to_plain`."""
    plugin = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile}.get(sniff(data) or "")
    if plugin is None:
        return False
    try:
        read = plugin(io.BytesIO(data)).convert("RGB")
    except Exception:  # Pillow refuses a file with damaged metadata
        return False
    return read.size == plain.size and ImageChops.difference(read, plain).getbbox() is None


@contextmanager
def _report_as_damaged() -> Iterator[None]:
    """Raise InvalidImage for any error of a decoder within the block."""
    try:
        yield
    except InvalidImage:
        raise
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a decoder may fail on a damaged file with any class of error
        raise InvalidImage("The image is damaged or cut short.") from error


def sniff(data: bytes) -> str | None:
    """Return the format by the file's first bytes, or None if the format is not accepted."""
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
    if data[4:8] == b"ftyp":  # ISO/IEC 14496-12: length, name, major brand, version, compatible brands
        brands = data[8 : min(int.from_bytes(data[:4]), 256)]
        return "AVIF" if b"avif" in brands or b"avis" in brands else "HEIC" if any(brand in brands for brand in HEIC_BRANDS) else None
    return None


def extension(data: bytes) -> str:
    """Return the file name extension, without a dot. `data`: of a file that `open_image` accepts."""
    return EXTENSIONS[sniff(data) or ""]


def _detect_format(data: bytes) -> str:
    if not data:
        raise InvalidImage("The image file is empty.", code="empty_image_file")
    image_format = sniff(data)
    if image_format is None:
        raise InvalidImage(f"The image must be one of {', '.join(PLUGINS)}.", code="invalid_image_format")
    if image_format not in PLUGINS:
        raise InvalidImage(
            f"This server does not accept {image_format} images; send a JPEG or PNG. (It would with llava-gateway[heic] installed.)",
            code="unsupported_image_media_type",
        )
    return image_format


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        megapixels = max_pixels // 1_000_000
        raise InvalidImage(f"The image has {width} x {height} pixels; at most {megapixels} million are allowed.", code="image_too_large")
    if max(width, height) > MAX_ASPECT * min(width, height):
        message = f"The image is {width} x {height} pixels; the longest side may be at most {MAX_ASPECT} times the shortest."
        raise InvalidImage(message, code="invalid_image")


def _load(image: Image.Image, target: Target) -> tuple[Image.Image, Size]:
    """Decode the image. Return the upright image and its output size."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        output_size = target.sizes[_upright_size(image)]
        if (scale := _scale(image, output_size)) > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        image.load()
        return _orient(image), output_size
    image.load()
    upright = _orient(image)
    if upright.size not in target.sizes:
        raise InvalidImage("The image does not have the size that its file declares.")
    return upright, target.sizes[upright.size]


def _scale(image: Image.Image, output_size: Size) -> int:
    """Return 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size. `output_size`: of the upright image."""
    width, height = _upright_size(image)
    ratio = min(width / output_size[0], height / output_size[1])
    return max((scale for scale in (8, 4, 2) if ratio >= 2 * scale), default=1)


def _upright_size(image: Image.Image) -> Size:
    width, height = image.size
    return (height, width) if _orientation(image) in ROTATED else (width, height)


def _orient(image: Image.Image) -> Image.Image:
    """Return the image upright."""
    method = TRANSPOSES.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    return int(image.info.get("orientation", UPRIGHT))


def _premultiply(image: Image.Image) -> Image.Image:
    """Return RGB, or RGBa (premultiplied) if the image has transparency.

    Premultiplied colours can be averaged without the colours of invisible pixels.
    """
    if is_deep(image):
        image = to_eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image if image.mode == "RGB" else image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Return RGB; transparent pixels become white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _make_square(image: Image.Image, side: int, target: Target) -> Image.Image:
    if target.aspect_ratio == "pad" and image.width != image.height:
        if max(image.size) > MAX_PADDED_SIDE:
            image.thumbnail((MAX_PADDED_SIDE, MAX_PADDED_SIDE), Image.Resampling.BICUBIC)
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
    # Resize and crop in one step: pixels outside the crop are not computed. Pillow rounds the box; at this scale the error is invisible.
    scale_x, scale_y = image.width / width, image.height / height
    box = (left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
