"""The structure of image files: expensive files are refused before they are decoded, and ordinary files are decoded in threads."""

import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
from helpers import hostile_files as hostile
from helpers.hostile_files import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from llava_gateway.errors import InvalidImage
from llava_gateway.images.decode import is_cheap, open_image
from llava_gateway.images.file_structure import MAX_JPEG_SCANS

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""
pillow_heif.register_heif_opener()  # for writing, in tests
MAX_PIXELS = 50_000_000
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
SMALL = PHOTO.resize((160, 120))
MEGAPIXEL = 1_000_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hostile.sequential_scans(20_000), "scans"),
        (lambda: hostile.sequential_scans(MAX_JPEG_SCANS + 1), "scans"),
        (lambda: hostile.sequential_scans(40, (7000, 7000)), "too many scans for its 49 megapixels"),
        (lambda: hostile.hidden_scans(1000), "scans"),
        (hostile.exif_flood, "metadata"),
        (lambda: hostile.segments(5000, b"\xff\xe2", b"ICC_PROFILE\0\1\1"), "metadata"),
        (lambda: hostile.segments(5000, b"\xff\xed", b"Photoshop 3.0\0"), "metadata"),
        (lambda: hostile.segments(5000, b"\xff\xfe", b"a comment"), "metadata"),
        (hostile.profile_flood, "metadata"),
        (lambda: hostile.png_chunks(5000, b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9), before=b"IEND"), "metadata"),
        (lambda: hostile.png_chunks(5000, b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(1_000_000), 9)), "metadata"),
        (lambda: hostile.large_tile(5000), "tiles of 5000 x 5000"),
        (lambda: hostile.shared_pieces(40, 1024, tiled=True), "share"),
        (lambda: hostile.shared_pieces(40, 1024, tiled=False), "share"),
    ],
)
def test_an_expensive_file_is_refused_before_it_is_decoded(make: Callable[[], bytes], message: str) -> None:
    data = make()
    start = time.process_time()
    with pytest.raises(InvalidImage, match=message):
        open_image(data, MAX_PIXELS)
    assert time.process_time() - start < 2  # decoding would take much longer
    assert not is_cheap(data)


@pytest.mark.parametrize(("coded", "declared"), [((1200, 1100), (100, 100)), ((1280, 800), (800, 1279))])
def test_an_avif_with_larger_coded_frames_than_it_declares_is_refused(coded: tuple[int, int], declared: tuple[int, int]) -> None:
    data = hostile.lying_avif(coded, declared)
    with pytest.raises(InvalidImage, match=f"coded frame of {coded[0]} x {coded[1]}"):
        open_image(data, MEGAPIXEL)
    assert not is_cheap(data)


def test_an_avif_sequence_with_larger_coded_frames_than_it_declares_is_refused() -> None:
    data = hostile.lying_avif((1200, 1100), (100, 100), save_all=True, append_images=[Image.new("RGB", (1200, 1100), "blue")])
    assert b"avis" in data[:40]
    with pytest.raises(InvalidImage, match="coded frame of 1200 x 1100"):
        open_image(data, MEGAPIXEL)


def test_an_avif_whose_parts_overlap_is_refused() -> None:
    data = encode(SMALL, "AVIF")
    at = data.index(b"iloc") + 8
    sizes, count, item, _, extents, offset, length = struct.unpack_from(">HHHHHII", data, at)
    assert (sizes, count, extents) == (0x4400, 1, 1)
    many = 5000
    flooded = data[:at] + struct.pack(">HHHHH", sizes, count, item, 0, many) + struct.pack(">II", offset, length) * many
    grown = 8 * (many - 1)
    whole = bytearray(flooded + data[at + 18 :])
    for name in (b"meta", b"iloc"):
        offset = whole.index(name) - 4
        whole[offset : offset + 4] = struct.pack(">I", struct.unpack_from(">I", whole, offset)[0] + grown)
    with pytest.raises(InvalidImage, match="overlap"):
        open_image(bytes(whole), MAX_PIXELS)


EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010F: "A maker", 0x0110: "A model"})
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORDINARY: list[tuple[str, Image.Image, dict[str, Any]]] = [
    ("JPEG", PHOTO, {}),
    ("JPEG", PHOTO, {"exif": EXIF, "icc_profile": PROFILE, "comment": b"hello", "restart_marker_rows": 1, "subsampling": "4:4:4"}),
    ("JPEG", PHOTO.convert("L"), {}),
    ("JPEG", PHOTO.convert("CMYK"), {}),
    ("JPEG", Image.new("RGB", (4000, 3000), "red"), {"exif": EXIF}),
    ("PNG", PHOTO, {"exif": EXIF, "icc_profile": PROFILE}),
    ("PNG", PHOTO.convert("RGBA"), {}),
    ("PNG", PHOTO.convert("P"), {"transparency": 1}),
    ("PNG", PHOTO.convert("1"), {}),
    ("WEBP", PHOTO, {}),
    ("WEBP", PHOTO, {"exif": EXIF, "icc_profile": PROFILE}),
]


@pytest.mark.parametrize(("image_format", "image", "options"), ORDINARY)
def test_ordinary_files_need_no_worker(image_format: str, image: Image.Image, options: dict[str, Any]) -> None:
    data = encode(image, image_format, **options)
    assert is_cheap(data)
    assert open_image(data, MAX_PIXELS).size == image.size


@pytest.mark.parametrize(
    ("image_format", "image", "options"),
    [
        ("JPEG", PHOTO, {"progressive": True}),
        ("JPEG", Image.new("RGB", (5000, 4000), "red"), {}),
        ("PNG", Image.new("RGB", (5000, 4000), "red"), {}),
        ("PNG", PHOTO, {"save_all": True, "append_images": [PHOTO.convert("L").convert("RGB")]}),
        ("WEBP", PHOTO, {"lossless": True}),
        ("WEBP", PHOTO.convert("RGBA"), {"exact": True, "save_all": True, "append_images": [Image.new("RGBA", PHOTO.size)]}),
        ("GIF", SMALL, {}),
        ("BMP", PHOTO, {}),
        ("TIFF", PHOTO, {}),
        ("TIFF", PHOTO, {"compression": "tiff_lzw"}),
        ("AVIF", SMALL, {}),
        ("AVIF", SMALL.convert("RGBA"), {}),
        ("AVIF", SMALL, {"save_all": True, "append_images": [SMALL]}),
        ("HEIF", SMALL, {}),
    ],
)
def test_files_of_unknown_cost_do_not_reach_a_thread(image_format: str, image: Image.Image, options: dict[str, Any]) -> None:
    data = encode(image, image_format, **options)
    assert not is_cheap(data)
    assert open_image(data, MAX_PIXELS).size == image.size


@pytest.mark.parametrize(
    "data",
    [
        hostile.sequential_scans(3),
        hostile.segments(70, b"\xff\xfe", b"a comment"),
        hostile.segments(2, b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        hostile.segments(1, b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(60_000)),
        hostile.png_chunks(70, b"iCCP", b"x\0\0" + zlib.compress(bytes(1000))),
        hostile.png_chunks(3, b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n" + b"00" * 9)),
        hostile.png_chunks(1000, b"IDAT", b""),
        hostile.png_chunks(1, b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000)),
    ],
)
def test_metadata_that_takes_long_to_read_does_not_reach_a_thread(data: bytes) -> None:
    assert not is_cheap(data)


def test_exif_entries_that_share_their_bytes_do_not_reach_a_thread() -> None:
    """5,000 tags of 60 kB each expand one segment to a third of a gigabyte."""
    count = 5000
    tags = b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(1, count + 1))
    assert not is_cheap(hostile.segments(1, b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + tags))


def test_a_tile_that_is_a_little_larger_than_its_image_is_not_refused() -> None:
    side = 512
    data = hostile.zeros(side * side * 3)
    tiled = hostile.rgb_tiff(20, 10, {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, 8), 325: (4, 1, len(data))}, data)
    image = open_image(tiled, MAX_PIXELS)
    image.load()
    assert image.size == (20, 10)


@NO_DEADLINE
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]), st.integers(0, 3000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_raises_nothing_but_invalid_image(name: str, at: int, damage: bytes) -> None:
    """The parsers also end on every damaged file."""
    data = DAMAGED[name]
    at %= len(data)
    changed = data[:at] + damage + data[at + len(damage) :]
    if not is_cheap(changed):
        try:
            open_image(changed, MAX_PIXELS)
        except InvalidImage as refusal:
            assert refusal.message


DAMAGED = {name: encode(PHOTO.resize((60, 50)), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}


def test_the_metadata_of_real_programs_is_not_refused() -> None:
    """The most that cameras and editors write: a profile of 255 segments, and megabytes of XMP."""
    segment = b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0"
    profile = b"".join(segment + bytes((number, 255)) + bytes(65_519) for number in range(1, 256))
    data = hostile.jpeg()
    assert open_image(data[:2] + profile + data[2:], MAX_PIXELS).size == (64, 64)
    xmp = b"\xff\xe1" + struct.pack(">H", 65_535) + b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_498)
    assert open_image(data[:2] + xmp * 64 + data[2:], MAX_PIXELS).size == (64, 64)
    text = hostile.png_chunks(200, b"tEXt", b"Comment\0" + b"x" * 100)
    assert open_image(text, MAX_PIXELS).size == (16, 16)
