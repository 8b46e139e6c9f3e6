"""The demo model describes odd image files of real programs as a browser shows them."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers import odd_images as odd
from helpers.errors import refused
from helpers.requests import MODEL, body, image_part, user

from llava_gateway.demo.images import data_uri, describe

CHAT = "/v1/chat/completions"
NAMES = (
    *("resolution of -1/0.jpg", "resolution unit as a byte.jpg", "short profile.jpg", "short Adobe.jpg", "XMP that turns.jpg"),
    *("profile with a wrong checksum.png", "profile of 2 MB.png", "workflow of 1.5 MB.png", "garbage as exif.png"),
    *("short chromaticities.png", "XMP that turns.png", "XMP as ASCII.tif", "XMP as LONG.tif", "garbage as exif.webp"),
    *("no end baseline.jpg", "no end progressive.jpg", "grey of 16 bits, white is zero, <, raw.tif"),
    *("grey of 32 bits, black is zero, <, raw.tif", "empty alpha.bmp", "RGBX.bmp", "upper half.gif"),
    *odd.ENCODED_FILES,
)


def test_an_odd_file_is_described_as_a_browser_shows_it(http: httpx.Client) -> None:
    def ask(name: str) -> tuple[str, str]:
        data, _ = odd.ALL[name]
        response = http.post(CHAT, json=body(image_part(data_uri(data)), "Describe this image."))
        return name, response.text if response.is_error else response.json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(16) as pool:
        answers = dict(pool.map(ask, NAMES))
    assert answers == {name: describe([odd.ALL[name][1]]) for name in NAMES}


@pytest.mark.parametrize("name", ["XMP that turns.jpg", "no end progressive.jpg", "upper half.gif"])
def test_a_later_turn_sees_the_same_picture(http: httpx.Client, name: str) -> None:
    data, grid = odd.ALL[name]
    messages = [user(image_part(data_uri(data)), "Describe this image."), {"role": "assistant", "content": describe([grid])}]
    for question, place in (("What color is the bottom left?", 2), ("What color is the bottom right?", 3)):
        request = {"model": MODEL, "messages": [*messages, user(question)], "temperature": 0}
        assert http.post(CHAT, json=request).json()["choices"][0]["message"]["content"] == f"{grid[place].capitalize()}."


def test_grey_without_a_meaning_is_refused_with_a_way_out(http: httpx.Client) -> None:
    response = http.post(CHAT, json=body(image_part(data_uri(odd.grey_tiff(16, odd.SIGNED))), "Describe this image."))
    error = refused(response, 400, "messages[0].content[0].image_url.url", "invalid_image")
    assert "save it as a PNG" in error["message"]


def test_a_truncated_jpeg_is_refused(http: httpx.Client) -> None:
    response = http.post(CHAT, json=body(image_part(data_uri(odd.JPEG[:-40])), "Describe this image."))
    refused(response, 400, "messages[0].content[0].image_url.url", "invalid_image")
