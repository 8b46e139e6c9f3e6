"""Images that take the way with vector instructions equal those of Hugging Face's processor, and those of Pillow within rounding."""

import io
from typing import Any

import numpy as np
import pytest
import torch  # from here on `prepare` takes the fast way
from helpers.tiny_models import TINY
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor

from llava_gateway.errors import InvalidImage
from llava_gateway.images import decode, vectorised
from llava_gateway.images.decode import Transform, open_image, prepare, render
from llava_gateway.model_info import VisionConfig

pytestmark = pytest.mark.slow

VISION = VisionConfig(336, lambda *_: 576, 576, 576, (), mean_color=(122, 116, 104))
CROP, RESIZE, PAD = (Transform(VISION, ratio) for ratio in ("crop", "resize", "pad"))
SIZES = ((640, 480), (1600, 1200), (336, 336), (337, 336), (50, 61), (1021, 677), (333, 2500))
assert torch


def photo(size: tuple[int, int]) -> Image.Image:
    """Return an image with smooth and with sharp parts."""
    random = np.random.default_rng(sum(size))
    small = Image.fromarray(random.integers(0, 256, (size[1] // 20 + 2, size[0] // 20 + 2, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    image.paste((255, 255, 255), (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
    return image


def file(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def fast(data: bytes, transform: Transform = CROP) -> Image.Image:
    """Prepare an image, and fail if Pillow did it."""
    opened = open_image(data, 20_000_000)
    rendered = decode._render_vectorised(opened, data, transform.target(opened.size))
    assert rendered is not None
    assert rendered.tobytes() == prepare(open_image(data, 20_000_000), data, transform).tobytes()
    return rendered


def by_pillow(data: bytes, transform: Transform = CROP) -> Image.Image:
    opened = open_image(data, 20_000_000)
    return render(opened, transform.target(opened.size))


def difference(one: Image.Image, other: Image.Image) -> NDArray[np.int16]:
    assert one.size == other.size
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "llava"
    TINY["bakllava"](folder)
    return AutoProcessor.from_pretrained(folder).image_processor


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_image_in_its_full_size_is_that_of_the_models_processor(size: tuple[int, int], image_format: str, processor: Any) -> None:
    data = file(photo(size), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
    if image_format == "JPEG" and min(size) >= 4 * 336:
        pytest.skip("such a JPEG is decoded at a fraction of its size")
    assert np.array_equal(processor(fast(data), return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("transform", [CROP, RESIZE], ids=["crop", "resize"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1500, 1400), (500, 700)])
def test_turned_image_is_that_of_pillow_within_rounding(transform: Transform, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(photo(size), exif=exif, quality=95)
    found = difference(fast(data, transform), by_pillow(data, transform))
    assert found.max() <= 5  # at sharp edges
    assert found.mean() < 0.2


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(640, 480), (1021, 677)])
def test_jpeg_has_the_same_pixels_as_from_pillow(options: dict[str, Any], scale: int, size: tuple[int, int]) -> None:
    data = file(photo(size), quality=90, **options)
    drafted = Image.open(io.BytesIO(data))
    drafted.draft("RGB", (size[0] // scale, size[1] // scale))
    pixels = vectorised.decode_jpeg(data, size, scale)
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(drafted))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_that_is_not_rgb_is_left_to_pillow(mode: str) -> None:
    data = file(photo((640, 480)).convert(mode))
    opened = open_image(data, 10_000_000)
    assert decode._render_vectorised(opened, data, CROP.target(opened.size)) is None
    assert prepare(open_image(data, 10_000_000), data, CROP).tobytes() == by_pillow(data).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "I;16"])
def test_png_with_transparency_or_palette_is_left_to_pillow(mode: str) -> None:
    image = photo((640, 480))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    data = file(image if mode == "I;16" else image.convert(mode), "PNG")
    assert prepare(open_image(data, 10_000_000), data, CROP).tobytes() == by_pillow(data).tobytes()


def test_padding_is_left_to_pillow_which_is_the_original_llava() -> None:
    data = file(photo((640, 480)))
    assert prepare(open_image(data, 10_000_000), data, PAD).tobytes() == by_pillow(data, PAD).tobytes()


def test_colour_that_is_declared_transparent_is_left_to_pillow() -> None:
    data = file(photo((640, 480)), "PNG", transparency=(255, 255, 255))
    assert prepare(open_image(data, 10_000_000), data, CROP).tobytes() == by_pillow(data).tobytes()


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_file_that_is_cut_short_gets_pillows_verdict(kept: float, image_format: str) -> None:
    data = file(photo((640, 480)), image_format)
    data = data[: int(len(data) * kept)]
    try:
        expected = by_pillow(data).tobytes()
    except InvalidImage as error:
        with pytest.raises(InvalidImage, match=error.message):
            prepare(open_image(data, 10_000_000), data, CROP)
    else:
        assert prepare(open_image(data, 10_000_000), data, CROP).tobytes() == expected


def test_damaged_scan_gets_the_pixels_or_the_error_of_pillow() -> None:
    """Each decoder conceals errors in its own way, unless both are the same library."""
    data = file(photo((640, 480)))
    for at in range(1000, len(data) - 100, len(data) // 40):
        damaged = data[:at] + b"\x55\xaa\x00\xff\xd3" + data[at + 5 :]
        try:
            expected = by_pillow(damaged)
        except InvalidImage:
            with pytest.raises(InvalidImage):
                prepare(open_image(damaged, 10_000_000), damaged, CROP)
        else:
            found = difference(prepare(open_image(damaged, 10_000_000), damaged, CROP), expected)
            assert found.max() <= 3
