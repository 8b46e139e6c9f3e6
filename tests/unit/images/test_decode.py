"""Decoding and preparing images: the pixels equal those of the reference processors, and no file does harm."""

import io
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images import decode
from llava_gateway.images.decode import Transform, open_image, sniff
from llava_gateway.images.inline import decode_inlined, inlined
from llava_gateway.images.plugins import PLUGINS
from llava_gateway.model_info import VisionConfig
from llava_gateway.settings import AspectRatio
from llava_gateway.types import BodySlice, ImageBase64, ImageUrl

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""
pillow_heif.register_heif_opener()  # for writing, in tests
VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)
CROP, PAD, RESIZE = (Transform(VISION, aspect_ratio) for aspect_ratio in get_args(AspectRatio))
GRID = ("red", "blue", "green", "orange")
RED, BLUE, GREEN, ORANGE = (220, 25, 25), (25, 50, 220), (20, 150, 40), (250, 140, 15)


def prepare(data: bytes, transform: Transform = CROP) -> Image.Image:
    """Prepare an image by Pillow, as in a process without torch."""
    image = open_image(data, 10_000_000)
    return decode.render(image, transform.target(image.size))


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(image.getpixel(at)) for at in ((40, 40), (296, 40), (40, 296), (296, 296))]  # type: ignore[arg-type]


def close(image: Image.Image, colors: Sequence[tuple[int, ...]], tolerance: int = 12) -> bool:
    return bool(np.abs(np.array(corners(image)) - np.array(colors)).max() <= tolerance)


def file(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if image_format == "PNG":
        options = {"compress_level": 1} | options
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Return an image with detail at every scale."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(small, np.int16) + rng.integers(-20, 20, (height, width, 3), np.int8)).clip(0, 255).astype(np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(336, 336), (400, 300), (300, 500), (1000, 337), (50, 60), (2000, 1500)])
def test_crop_equals_hugging_faces_processor(size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    image = photo(*size)
    processor = AutoProcessor.from_pretrained(CHECKPOINT).image_processor
    options = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    expected = processor(image, **options)["pixel_values"][0].transpose(1, 2, 0).astype(np.int16)
    ours = np.asarray(prepare(file(image, "PNG")), np.int16)
    assert ours.shape == (336, 336, 3)
    # The reference resizes with torchvision and the gateway with Pillow. The filter is the same, but the rounding differs.
    difference = np.abs(ours - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_decoding_a_jpeg_at_a_smaller_scale_keeps_its_pixels_close() -> None:
    data = file(photo(1800, 1400), "JPEG", quality=90)
    drafted = np.asarray(prepare(data), np.int16)
    full = np.asarray(prepare(file(Image.open(io.BytesIO(data)), "PNG")), np.int16)
    assert np.abs(drafted - full).mean() < 1


@pytest.mark.parametrize("size", [(1600, 1200), (337, 1000), (2000, 1333), (50, 61)])
def test_resizing_and_cropping_in_one_step_equals_two_steps(size: tuple[int, int]) -> None:
    image = photo(*size)
    short = min(size)
    resized = image.resize((336 * size[0] // short, 336 * size[1] // short), Image.Resampling.BICUBIC)
    left, top = (resized.width - 336) // 2, (resized.height - 336) // 2
    expected = np.asarray(resized.crop((left, top, left + 336, top + 336)), np.int16)
    difference = np.abs(np.asarray(prepare(file(image, "PNG")), np.int16) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def expand_to_square(image: Image.Image) -> Image.Image:
    """Pad like the original LLaVA's `expand2square`, with CLIP's mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", [(500, 300), (301, 700), (400, 400), (50, 49), (1500, 40)])
def test_pad_equals_the_original_llava(size: tuple[int, int]) -> None:
    image = photo(*size)
    padded = prepare(file(image, "PNG"), PAD)
    assert padded.tobytes() == expand_to_square(image).resize((336, 336), Image.Resampling.BICUBIC).tobytes()
    assert padded.tobytes() == prepare(file(expand_to_square(image), "PNG")).tobytes()


def test_padding_a_very_long_image_needs_no_gigabytes() -> None:
    image = prepare(file(draw(GRID, (20_000, 250)), "PNG"), PAD)
    assert image.getpixel((168, 5)) == (122, 116, 104)
    assert image.getpixel((5, 167)) != (122, 116, 104)


def test_resize_neither_crops_nor_pads() -> None:
    image = photo(600, 200)
    squashed = prepare(file(image, "PNG"), RESIZE)
    assert squashed.tobytes() == image.resize((336, 336), Image.Resampling.BICUBIC).tobytes()


def test_transparent_pixels_do_not_take_the_colour_of_the_padding() -> None:
    image = Image.new("RGBA", (300, 100), (0, 0, 0, 0))
    padded = prepare(file(image, "PNG"), PAD)
    assert padded.getpixel((168, 20)) == (122, 116, 104)
    assert padded.getpixel((168, 168)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_becomes_upright(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the value of Pillow's Transpose by the orientation that undoes it
    stored = draw(GRID)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared = prepare(file(stored, "JPEG", quality=95, exif=exif))
    assert close(prepared, [RED, BLUE, GREEN, ORANGE])
    assert not prepared.getexif()  # vLLM would orient the image a second time


def test_no_color_mode_changes_the_colors() -> None:
    image = draw(GRID)
    colors = [RED, BLUE, GREEN, ORANGE]
    assert close(prepare(file(image.convert("CMYK"), "JPEG", quality=95)), colors, 40)
    assert close(prepare(file(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")), colors)
    assert close(prepare(file(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF")), colors)
    grey = [(int(0.299 * r + 0.587 * g + 0.114 * b),) * 3 for r, g, b in colors]
    assert close(prepare(file(image.convert("L"), "PNG")), grey, 2)
    assert close(prepare(file(image.convert("LA"), "PNG")), grey, 2)
    assert close(prepare(file(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), "PNG")), grey, 2)
    assert corners(prepare(file(Image.new("1", (40, 40), 1), "PNG"))) == [(255, 255, 255)] * 4
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert close(prepare(file(image, "PNG", icc_profile=profile)), colors)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_become_white(image_format: str) -> None:
    image = draw(GRID).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 168, 168))
    options = {"lossless": True} if image_format == "WEBP" else {}
    assert close(prepare(file(image, image_format, **options)), [(255, 255, 255), BLUE, GREEN, ORANGE])


def test_a_transparent_palette_color_becomes_white() -> None:
    image = draw(GRID).convert("P", palette=Image.Palette.ADAPTIVE)
    data = file(image, "PNG", transparency=image.getpixel((0, 0)))
    assert close(prepare(data), [(255, 255, 255), BLUE, GREEN, ORANGE])


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_of_an_animation_is_shown(image_format: str) -> None:
    frames = [draw(("black",) * 4) for _ in range(20)]
    data = file(draw(GRID), image_format, save_all=True, append_images=frames)
    assert close(prepare(data), [RED, BLUE, GREEN, ORANGE], 60)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_image_file"),
        (b"x", "invalid_image_format"),
        (b"\xff\xd8\xff", "invalid_image"),
        (b"GIF89a", "invalid_image"),
        (b"BM", "invalid_image"),
        (b"II*\x00", "invalid_image"),
        (b"RIFF\x00\x00\x00\x00WEBP", "invalid_image"),
        (file(Image.new("1", (5000, 5000)), "PNG"), "image_too_large"),
        (file(Image.new("1", (1, 101)), "PNG"), "invalid_image"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_refused_has_the_right_error_code(data: bytes, code: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        prepare(data)
    assert refusal.value.code == code


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    """Each repeated scan of a progressive JPEG costs a pass over all pixels, for a few bytes."""
    data = file(photo(64, 64), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidImage, match="scans"):
        prepare(data[:-2] + scan * 1000 + data[-2:])
    assert prepare(data).size == (336, 336)


@pytest.mark.parametrize("name", ["HEIF", "AVIF"])
def test_heic_and_avif_are_decoded_and_their_size_is_limited(name: str) -> None:
    assert close(prepare(file(draw(GRID), name, quality=90)), [RED, BLUE, GREEN, ORANGE], 30)
    with pytest.raises(InvalidImage, match="pixels") as refusal:
        open_image(file(draw(GRID), name), 1000)
    assert refusal.value.code == "image_too_large"


@pytest.mark.parametrize(("name", "format_name"), [("HEIF", "HEIC"), ("AVIF", "AVIF")])
def test_heic_and_avif_without_the_extra_name_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, format_name: str) -> None:
    data = file(draw(GRID), name)
    monkeypatch.delitem(PLUGINS, format_name)
    with pytest.raises(InvalidImage, match=format_name) as refusal:
        open_image(data, 10_000_000)
    assert refusal.value.code == "unsupported_image_media_type"
    assert "llava-gateway[heic]" in refusal.value.message


FILES = {name: encode(draw(GRID, (60, 50)), name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.parametrize("name", FILES)
def test_the_format_is_detected_from_the_first_bytes(name: str) -> None:
    assert sniff(FILES[name]) == name


@NO_DEADLINE
@given(st.sampled_from(sorted(FILES)), st.integers(0, 3000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_raises_nothing_but_invalid_image(name: str, at: int, damage: bytes) -> None:
    data = FILES[name]
    at %= len(data)
    try:
        assert prepare(data[:at] + damage + data[at + len(damage) :]).size == (336, 336)
    except InvalidImage as refusal:
        assert refusal.code


def unpacked(image: ImageUrl | ImageBase64, max_bytes: int = 1000) -> bytes:
    found = inlined(image)
    assert isinstance(found, memoryview)
    return decode_inlined(found, max_bytes)


@NO_DEADLINE
@given(st.binary(max_size=300))
def test_no_bytes_are_changed_by_base64(data: bytes) -> None:
    uri = data_uri(data)
    unpadded = uri.rstrip("=").replace("+", "-").replace("/", "_").replace("image_png", "x")
    assert unpacked(ImageUrl(uri, "")) == unpacked(ImageUrl(unpadded, "")) == data
    bare = uri.partition(",")[2]
    assert unpacked(ImageBase64(bare, "")) == unpacked(ImageBase64(uri, "")) == data
    assert unpacked(ImageBase64(BodySlice(memoryview(bare.encode())), "")) == data


@NO_DEADLINE
@given(st.text(max_size=60))
def test_no_text_raises_anything_but_invalid_image(text: str) -> None:
    for image in (ImageUrl("data:" + text, ""), ImageBase64(text, "")):
        try:
            unpacked(image)
        except InvalidImage as refusal:
            assert refusal.code


def test_an_inline_image_over_the_limit_is_refused() -> None:
    for image in (ImageUrl(data_uri(bytes(3 << 20)), ""), ImageBase64(data_uri(bytes(3 << 20)).partition(",")[2], "")):
        with pytest.raises(InvalidImage, match="larger"):
            unpacked(image, 1 << 20)
