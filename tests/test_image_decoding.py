"""From files to what the model sees: equal to Hugging Face's processor, and no file hurts."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from transformers import AutoProcessor

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.pictures import data_uri, draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images.data_uri import decode_data_uri
from llava_gateway.images.decode import Limits, prepare, sniff

LIMITS = Limits(side=336, max_pixels=10_000_000)
GRID = ("red", "blue", "green", "orange")
RED, BLUE, GREEN, ORANGE = (220, 25, 25), (25, 50, 220), (20, 150, 40), (250, 140, 15)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(image.getpixel(at)) for at in ((40, 40), (296, 40), (40, 296), (296, 296))]  # type: ignore[arg-type]


def close(image: Image.Image, colors: list[tuple[int, ...]], tolerance: int = 12) -> bool:
    return bool(np.abs(np.array(corners(image)) - np.array(colors)).max() <= tolerance)


def file(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Something with detail at every scale."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(small, np.int16) + rng.integers(-20, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(336, 336), (400, 300), (300, 500), (1000, 337), (50, 60), (2000, 1500)])
def test_equals_hugging_faces_processor(size: tuple[int, int]) -> None:
    picture = photo(*size)
    processor = AutoProcessor.from_pretrained(CHECKPOINT).image_processor
    options = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    expected = processor(picture, **options)["pixel_values"][0].transpose(1, 2, 0).astype(np.int16)
    ours = np.asarray(prepare(file(picture, "PNG"), LIMITS, "p"), np.int16)
    assert ours.shape == (336, 336, 3)
    # Theirs resizes with torchvision, ours with Pillow: the same filter, rounded differently.
    difference = np.abs(ours - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_a_large_jpeg_decoded_small_is_close_to_a_full_decode() -> None:
    data = file(photo(3000, 2400), "JPEG", quality=90)
    drafted = np.asarray(prepare(data, LIMITS, "p"), np.int16)
    full = np.asarray(prepare(file(Image.open(io.BytesIO(data)), "PNG"), LIMITS, "p"), np.int16)
    assert np.abs(drafted - full).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose values that the orientation undoes
    stored = draw(GRID)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(prepare(file(stored, "JPEG", quality=95, exif=exif), LIMITS, "p"), [RED, BLUE, GREEN, ORANGE])


def test_color_modes() -> None:
    picture = draw(GRID)
    colors = [RED, BLUE, GREEN, ORANGE]
    assert close(prepare(file(picture.convert("CMYK"), "JPEG", quality=95), LIMITS, "p"), colors, 40)
    assert close(prepare(file(picture.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), LIMITS, "p"), colors)
    assert close(prepare(file(picture.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), LIMITS, "p"), colors)
    grey = [(int(0.299 * r + 0.587 * g + 0.114 * b),) * 3 for r, g, b in colors]
    assert close(prepare(file(picture.convert("L"), "PNG"), LIMITS, "p"), grey, 2)
    assert close(prepare(file(picture.convert("LA"), "PNG"), LIMITS, "p"), grey, 2)
    assert close(prepare(file(Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257), "PNG"), LIMITS, "p"), grey, 2)
    assert corners(prepare(file(Image.new("1", (40, 40), 1), "PNG"), LIMITS, "p")) == [(255, 255, 255)] * 4
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert close(prepare(file(picture, "PNG", icc_profile=profile), LIMITS, "p"), colors)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_white(image_format: str) -> None:
    picture = draw(GRID).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 168, 168))
    options = {"lossless": True} if image_format == "WEBP" else {}
    assert close(prepare(file(picture, image_format, **options), LIMITS, "p"), [(255, 255, 255), BLUE, GREEN, ORANGE])


def test_a_transparent_palette_color_is_white() -> None:
    picture = draw(GRID).convert("P", palette=Image.Palette.ADAPTIVE)
    data = file(picture, "PNG", transparency=picture.getpixel((0, 0)))
    assert close(prepare(data, LIMITS, "p"), [(255, 255, 255), BLUE, GREEN, ORANGE])


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame(image_format: str) -> None:
    frames = [draw(("black",) * 4) for _ in range(300)]
    data = file(draw(GRID), image_format, save_all=True, append_images=frames)
    assert close(prepare(data, LIMITS, "p"), [RED, BLUE, GREEN, ORANGE], 60)


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
def test_refusals(data: bytes, code: str) -> None:
    with pytest.raises(InvalidImage) as refusal:
        prepare(data, LIMITS, "p")
    assert refusal.value.code == code
    assert refusal.value.param == "p"


def test_a_scan_bomb() -> None:
    """Each repeated scan of a progressive JPEG costs a pass over all pixels, for a few bytes."""
    data = file(photo(64, 64), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidImage, match="scans"):
        prepare(data[:-2] + scan * 1000 + data[-2:], LIMITS, "p")
    assert prepare(data, LIMITS, "p").size == (336, 336)


FILES = {name: encode(draw(GRID, (60, 50)), name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.parametrize("name", FILES)
def test_sniffing(name: str) -> None:
    assert sniff(FILES[name]) == name


@given(st.sampled_from(sorted(FILES)), st.integers(0, 3000), st.binary(min_size=1, max_size=8))
def test_damaged_files_are_images_or_refused(name: str, at: int, damage: bytes) -> None:
    data = FILES[name]
    at %= len(data)
    try:
        assert prepare(data[:at] + damage + data[at + len(damage) :], LIMITS, "p").size == (336, 336)
    except InvalidImage as refusal:
        assert refusal.code


@given(st.binary(max_size=300))
def test_data_uris_carry_any_bytes(data: bytes) -> None:
    assert decode_data_uri(data_uri(data), 1000, "p") == data
    assert decode_data_uri(data_uri(data).rstrip("=").replace("+", "-").replace("/", "_").replace("image_png", "x"), 1000, "p") == data


@given(st.text(max_size=60).map("data:".__add__))
def test_any_data_uri_is_read_or_refused(uri: str) -> None:
    try:
        decode_data_uri(uri, 1000, "p")
    except InvalidImage as refusal:
        assert refusal.param == "p"


def test_data_uris_are_bounded() -> None:
    with pytest.raises(InvalidImage, match="larger"):
        decode_data_uri(data_uri(bytes(3 << 20)), 1 << 20, "p")
