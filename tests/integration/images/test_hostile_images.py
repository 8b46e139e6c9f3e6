"""Pictures made to do harm, each as a real request; a picture of everyday after each is answered truly."""

import io
import struct
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from helpers import hostile_files as hostile
from helpers.errors import refused
from helpers.requests import body, image, image_part
from PIL import Image

from llava_gateway.demo.images import COLORS, Grid, data_uri, describe, draw, encode

CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"
GRID = ("red", "blue", "green", "orange")
FRAMES = 10_000
HUGE = 64_250


@pytest.fixture(autouse=True)
def everyday(http: httpx.Client) -> Iterator[None]:
    yield
    assert told(http, encode(draw(GRID))) == describe([GRID])


def ask(http: httpx.Client, data: bytes) -> httpx.Response:
    return http.post(CHAT, json=body(image_part(data_uri(data)), "Describe this image."))


def told(http: httpx.Client, data: bytes) -> str:
    return str(ask(http, data).json()["choices"][0]["message"]["content"])


def cached_tokens(http: httpx.Client, data: bytes) -> int:
    return int(ask(http, data).json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def huge_jpeg() -> bytes:
    data = encode(draw(GRID), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", HUGE, HUGE) + data[at + 4 :]


def huge_gif() -> bytes:
    data = encode(draw(GRID), "GIF")
    return data[:6] + struct.pack("<HH", HUGE, HUGE) + data[10:]


def huge_bmp() -> bytes:
    data = encode(draw(GRID, (96, 96)), "BMP")
    return data[:18] + struct.pack("<ii", HUGE, HUGE) + data[26:]


def huge_webp() -> bytes:
    buffer = io.BytesIO()
    picture = draw(GRID).convert("RGBA")
    picture.putalpha(128)
    picture.save(buffer, "WEBP", lossless=True, exif=b"Exif\0\0II*\0" + bytes(6))  # extended, so that it declares a canvas
    data = buffer.getvalue()
    assert data[12:16] == b"VP8X"
    return data[:24] + (16_383).to_bytes(3, "little") * 2 + data[30:]


def huge_tiff() -> bytes:
    """One strip of a few bytes that says it is everything."""
    entries = [(256, 4, HUGE), (257, 4, HUGE), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, HUGE), (279, 4, 100)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(104)


@pytest.mark.parametrize("make", [huge_jpeg, huge_gif, huge_bmp, huge_webp, huge_tiff])
def test_small_file_that_declares_gigapixels_is_refused(http: httpx.Client, make: object) -> None:
    assert callable(make)
    data = make()
    assert len(data) < 100_000
    error = refused(ask(http, data), 400, URL)
    assert error["code"] in ("image_too_large", "invalid_image")  # WebP's own decoder finds the lie before the size is asked for


@pytest.mark.parametrize(
    "make",
    [
        lambda: hostile.sequential_scans(100_000),
        lambda: hostile.large_tile(16_384),
        lambda: hostile.shared_pieces(40, 1024, tiled=True),
        hostile.exif_flood,
        hostile.profile_flood,
        lambda: hostile.lying_avif((8192, 8192), (100, 100)),
    ],
    ids=["scans", "tile", "shared tiles", "EXIF", "profiles", "AVIF"],
)
def test_file_with_hidden_decoding_cost_is_refused(http: httpx.Client, make: Callable[[], bytes]) -> None:
    error = refused(ask(http, make()), 400, URL)
    assert error["code"] in ("image_too_large", "invalid_image")


def flood(data: bytes, frame: bytes) -> bytes:
    """Of an animation: its last frame, ten thousand times."""
    at = data.rindex(frame)
    end = len(data) - (1 if data.startswith(b"GIF") else 0)
    flooded = data[:at] + data[at:end] * FRAMES + data[end:]
    return flooded[:4] + struct.pack("<I", len(flooded) - 8) + flooded[8:] if data.startswith(b"RIFF") else flooded


def test_only_the_first_of_ten_thousand_frames_is_used(http: httpx.Client) -> None:
    for name, frame in (("GIF", b"\x21\xf9\x04"), ("WEBP", b"ANMF")):
        buffer = io.BytesIO()
        small = [draw(colors, (24, 24)) for colors in (GRID, ("black",) * 4)]
        small[0].save(buffer, name, save_all=True, append_images=small[1:], duration=10, **({"lossless": True} if name == "WEBP" else {}))
        single = io.BytesIO()
        small[0].save(single, "PNG")
        data = flood(buffer.getvalue(), frame)
        with Image.open(io.BytesIO(data)) as opened:
            assert getattr(opened, "n_frames", 1) > 9000
        assert told(http, data) == told(http, single.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00\x00\x00\x00\x04" + bytes(300),  # McIdas
        b"\x01fcp" + bytes(300),  # PCF
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n",
        b"SIMPLE  =                    T" + b" " * 3000,  # FITS
        b"8BPS\x00\x01" + bytes(300),  # Photoshop
        b"\x00\x00\x01\x00\x01\x00" + bytes(300),  # an icon
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(300),  # JPEG 2000
        b"\xff\x0a" + bytes(300),  # JPEG XL
        b"P6 100 100 255\n" + bytes(30_000),  # PPM
    ],
    ids=lambda data: repr(data[:8]),
)
def test_file_of_an_unneeded_format_is_refused(http: httpx.Client, data: bytes) -> None:
    refused(ask(http, data), 400, URL, "invalid_image_format")


def test_image_of_the_same_bytes_but_another_shape_is_not_cached(http: httpx.Client) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, 9000, np.uint8)
    wide, tall = (encode(Image.fromarray(pixels.reshape(shape))) for shape in ((30, 100, 3), (100, 30, 3)))
    assert cached_tokens(http, wide) == 0
    assert cached_tokens(http, tall) == 0
    assert cached_tokens(http, wide) > 500


def test_image_of_the_same_indices_but_another_palette_is_not_confused(http: httpx.Client) -> None:
    other = ("white", "purple", "yellow", "black")
    indices = Image.new("P", (96, 96))
    for place in range(4):
        indices.paste(place, (place % 2 * 48, place // 2 * 48, place % 2 * 48 + 48, place // 2 * 48 + 48))
    for grid in (GRID, other):
        indices.putpalette([part for color in grid for part in COLORS[color]])
        assert told(http, encode(indices)) == describe([grid])


def test_client_uuid_of_an_image_is_not_a_cache_key(http: httpx.Client) -> None:
    grids: list[Grid] = [("purple", "red", "white", "blue"), ("blue", "white", "red", "purple")]
    for grid in grids:
        part = image(grid) | {"uuid": "x" * (5 << 20)}
        answer = http.post(CHAT, json=body(part, "Describe this image.")).json()
        assert answer["choices"][0]["message"]["content"] == describe([grid])
