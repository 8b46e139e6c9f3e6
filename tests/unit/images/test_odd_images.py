"""Odd image files of real programs: the picture is that of a browser or of libtiff, or the file is refused, but it is never wrong."""

import asyncio
import io
import struct
import time
import zlib

import numpy as np
import pillow_heif
import pytest
from helpers import hostile_files as hostile
from helpers import odd_images as odd
from helpers.hostile_files import encode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_gateway.demo.images import COLORS, Grid
from llava_gateway.errors import InvalidImage
from llava_gateway.images import decode
from llava_gateway.images.decode import Transform, is_cheap, open_image, to_plain
from llava_gateway.images.image_workers import ImageWorkers
from llava_gateway.images.metadata import exif_orientation
from llava_gateway.model_info import VisionConfig
from llava_gateway.settings import Settings

pillow_heif.register_heif_opener()  # for writing, in tests
TRANSFORM = Transform(VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576), "resize")
MAX_PIXELS = 10_000_000
NOISE = np.random.default_rng(0).integers(-20, 20, (96, 96, 3))
PHOTO = Image.fromarray((np.asarray(odd.IMAGE, np.int16) + NOISE).clip(0, 255).astype(np.uint8))


def prepare(data: bytes) -> Image.Image:
    image = open_image(data, MAX_PIXELS)
    return decode.render(image, TRANSFORM.target(image.size))


def grid(image: Image.Image) -> Grid:
    """Return the colours of the quarters."""
    found = []
    for at in ((84, 84), (252, 84), (84, 252), (252, 252)):
        pixel = np.array(image.getpixel(at))
        found.append(min(COLORS, key=lambda name: int(np.abs(pixel - COLORS[name]).max())))
        assert np.abs(pixel - COLORS[found[-1]]).max() < 20
    top_left, top_right, bottom_left, bottom_right = found
    return top_left, top_right, bottom_left, bottom_right


@pytest.mark.parametrize("name", odd.ALL)
def test_an_odd_file_is_neither_refused_nor_misread(name: str) -> None:
    data, expected = odd.ALL[name]
    assert grid(prepare(data)) == expected


def test_workers_and_threads_read_an_odd_file_alike() -> None:
    async def main() -> None:
        pool = ImageWorkers(Settings())
        try:
            for name, (data, _) in odd.ALL.items():
                image = open_image(data, MAX_PIXELS)
                prepared = await pool.prepare(data, TRANSFORM.target(image.size), "192.0.2.1")
                assert prepared.tobytes() == decode.render(image, TRANSFORM.target(image.size)).tobytes(), name
        finally:
            await pool.close()

    asyncio.run(main())


@given(
    st.integers(0xE0, 0xEF) | st.just(0xFE),
    st.sampled_from([b"", b"Exif\0\0", b"JFIF\0", b"Adobe", b"ICC_PROFILE\0"]),
    st.binary(max_size=60),
)
def test_no_segment_of_metadata_refuses_a_jpeg(marker: int, name: bytes, payload: bytes) -> None:
    data = odd.jpeg((marker, name + payload))
    assert to_plain(open_image(data, MAX_PIXELS)).size == odd.IMAGE.size


@given(
    st.sampled_from([b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"cHRM", b"gAMA", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"tIME", b"tRNS"]),
    st.binary(max_size=60),
    st.sampled_from([None, 7]),
    st.sampled_from([b"IDAT", b"IEND"]),
)
def test_no_chunk_of_metadata_refuses_a_png(name: bytes, payload: bytes, checksum: int | None, before: bytes) -> None:
    data = odd.png(name, payload, checksum, before=before)
    assert to_plain(open_image(data, MAX_PIXELS)).size == odd.IMAGE.size


@given(st.integers(0, 80), st.binary(min_size=1, max_size=8), st.sampled_from("<>"))
def test_damaged_exif_gives_an_orientation(at: int, damage: bytes, order: str) -> None:
    block = odd.exif((0x011A, odd.SRATIONAL, 1, 38), order=order)
    assert exif_orientation(block) == 6
    assert 1 <= exif_orientation(block[:at] + damage + block[at + len(damage) :]) <= 8


@pytest.mark.parametrize(("kind", "count"), [(odd.LONG, 1), (odd.SHORT, 2), (1, 1)])
def test_only_one_number_of_two_bytes_is_an_orientation(kind: int, count: int) -> None:
    """Chromium has this rule."""
    block = odd.exif()
    assert exif_orientation(block[:12] + struct.pack("<HI", kind, count) + block[18:]) == 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}], ids=str)
def test_a_truncated_jpeg_is_refused_or_has_all_pixels(options: dict[str, object]) -> None:
    whole = encode(PHOTO, "JPEG", quality=90, **options)
    expected = to_plain(open_image(whole, MAX_PIXELS))
    first_scan, accepted = whole.index(b"\xff\xda"), 0
    for cut in (*range(3, 40), *range(40, len(whole) - first_scan, 97)):
        try:
            image = to_plain(open_image(whole[:-cut], MAX_PIXELS))
        except InvalidImage:
            continue
        accepted += 1
        assert np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16)).max() <= 4, cut
    assert accepted <= 1  # without its last byte a file may still have all pixels


@pytest.mark.parametrize("name", ["cjpeg_progressive.jpg", "cjpeg_separate_scans.jpg"])
def test_a_jpeg_that_ends_before_its_last_scan_is_refused(name: str) -> None:
    data, _ = odd.ALL[name]
    prepare(data[:-2])
    starts = [at for at in range(len(data)) if data.startswith((b"\xff\xda", b"\xff\xc4"), at)]
    for at in starts[1:]:
        with pytest.raises(InvalidImage, match="cut short"):
            prepare(data[:at])


@pytest.mark.parametrize("name", odd.UNENDED)
def test_a_jpeg_without_an_end_does_not_reach_a_thread(name: str) -> None:
    """It is decoded three times."""
    assert not is_cheap(odd.UNENDED[name])


@pytest.mark.parametrize("size", [(1, 1), (17, 9), (300, 200)])
def test_a_flat_jpeg_without_an_end_is_whole_at_any_size(size: tuple[int, int]) -> None:
    """All bits of its pixels may be alike, as in the bytes that the check adds."""
    for color in ("black", "white", "red"):
        assert to_plain(open_image(encode(Image.new("RGB", size, color), "JPEG")[:-2], MAX_PIXELS)).size == size


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("order", "<>")
def test_signed_grey_is_refused(bits: int, order: str) -> None:
    """libtiff and ImageMagick disagree about its black."""
    with pytest.raises(InvalidImage, match="signed samples"):
        prepare(odd.grey_tiff(bits, odd.SIGNED, order=order))


@pytest.mark.parametrize("levels", [(0, 255), (-1, 1), (0, 65535), (float("nan"), float("nan"))])
def test_floating_point_grey_of_another_range_is_refused(levels: tuple[float, float]) -> None:
    pixels = np.where(np.asarray(odd.IMAGE.convert("L")) > 80, *levels).astype("<f4").tobytes()
    tags = {258: 32, 262: 1, 277: 1, 339: odd.FLOAT}
    with pytest.raises(InvalidImage, match="floating-point"):
        prepare(odd.tiff(pixels, {tag: (tag, odd.SHORT, 1, value) for tag, value in tags.items()}))


@pytest.mark.parametrize(("bits", "sample_format"), [(16, odd.FLOAT), (64, odd.FLOAT)])
def test_grey_that_cannot_be_read_names_a_way_out(bits: int, sample_format: int) -> None:
    with pytest.raises(InvalidImage, match="save it as a PNG"):
        prepare(odd.grey_tiff(bits, sample_format))


@pytest.mark.parametrize("order", "<>")
def test_grey_without_a_photometric_meaning_is_read_as_libtiff_does(order: str) -> None:
    data = odd.grey_tiff(16, order=order)
    entry = data.index(struct.pack(f"{order}HHIH", 262, 3, 1, 1))
    assert grid(prepare(data[:entry] + struct.pack(f"{order}H", 263) + data[entry + 2 :])) == odd.GREY


def test_a_palette_of_eight_bits_is_not_black() -> None:
    indices = odd.IMAGE.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    palette = np.resize(np.array(indices.getpalette(), "<u2"), (256, 3)).T.tobytes()
    tags = {258: (258, odd.SHORT, 1, 8), 262: (262, odd.SHORT, 1, 3), 277: (277, odd.SHORT, 1, 1), 320: (320, odd.SHORT, 768, 8 + 96 * 96)}
    assert grid(prepare(odd.tiff(indices.tobytes(), tags, rest=palette))) == odd.GRID


def test_the_directory_of_a_tiff_is_read_once() -> None:
    """The structure is checked before metadata is removed. A second width must not reach the decoder."""
    data = hostile.large_tile(200)
    assert open_image(data, MAX_PIXELS).size == (100, 100)
    at = data.rindex(struct.pack("<HHII", 256, 4, 1, 100))
    doubled = data[:at] + struct.pack("<HHII", 257, 4, 1, 100) * 2 + data[at + 24 :]
    with pytest.raises(InvalidImage):
        prepare(doubled)


@pytest.mark.parametrize("masks", [(0xF0F000, 0xFF00, 0xFF, 0), (0x1FF0000, 0xFF00, 0xF5, 0)])
def test_a_mask_with_a_hole_is_refused(masks: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidImage, match="mask"):
        prepare(odd.bmp(masks))


def test_a_truncated_bmp_with_masks_is_refused() -> None:
    with pytest.raises(InvalidImage, match="cut short"):
        prepare(odd.bmp((0xF00, 0xF0, 0xF, 0), 16)[:-500])


@pytest.mark.parametrize("payload", [b"garbage", b"II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("image_format", ["HEIF", "AVIF"])
def test_damaged_exif_in_heic_and_avif_does_not_refuse_them(image_format: str, payload: bytes) -> None:
    exif = Image.Exif()
    exif[0x010F] = "The maker of the camera"
    data = encode(odd.IMAGE, image_format, quality=90, exif=exif.tobytes())
    at = data.index(b"MM\0*")
    assert grid(prepare(data[:at] + payload + data[at + len(payload) :])) == odd.GRID


@pytest.mark.parametrize("image_format", ["HEIF", "AVIF"])
def test_heic_and_avif_are_turned_once(image_format: str) -> None:
    """Phones write the orientation twice: as a property of the image, which the decoder applies, and as EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert grid(prepare(encode(odd.LEFT, image_format, quality=90, exif=exif.tobytes()))) == odd.GRID


def test_metadata_costs_no_time() -> None:
    """Pillow would decompress each text and profile."""
    bomb = odd.chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9)) + odd.chunk(
        b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000), 9)
    )
    data = odd.PNG[:33] + bomb * 300 + odd.PNG[33:]
    start = time.process_time()
    assert to_plain(open_image(data, MAX_PIXELS)).size == odd.IMAGE.size
    assert time.process_time() - start < 0.5


def test_an_image_in_the_format_of_a_phone_is_decoded_at_a_smaller_scale() -> None:
    """Removing the metadata must not lose the decoding at a smaller scale."""
    large = odd.IMAGE.resize((2400, 1800))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 8
    large.save(buffer, "JPEG", exif=exif)
    image = open_image(buffer.getvalue(), MAX_PIXELS)
    assert image.size == (2400, 1800)
    assert decode.render(image, TRANSFORM.target(image.size)).size == (336, 336)
    assert image.size == (1200, 900)
