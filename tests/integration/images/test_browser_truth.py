"""Chromium and the gateway show the same picture for every odd file in a format that browsers read."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import odd_images as odd
from PIL import Image
from playwright.sync_api import Browser, Page

from llava_gateway.demo.images import data_uri
from llava_gateway.images.decode import open_image, sniff, to_plain

SHOW = """async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    return canvas.toDataURL("image/png");
}"""
ENCODE = """async ([uri, type]) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL(type, 0.9);
}"""
TOLERANCE = 3
"""The greatest mean difference of a pixel. Decoders of JPEG, WebP and AVIF enlarge the colours in different ways."""
WITHOUT_LAST_BLOCKS = odd.SIDE - 24
"""The rows of a JPEG without an end marker that Chromium shows. It waits for the marker before it shows the last blocks."""
SHOWN = {name: data for name, (data, _) in odd.ALL.items() if sniff(data) not in ("TIFF", "HEIC") and name not in odd.EMPTY_ALPHA}


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def shown(page: Page, data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return the pixels that Chromium shows on white."""
    with Image.open(io.BytesIO(decoded(page.evaluate(SHOW, data_uri(data))))) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def test_every_odd_file_looks_as_in_a_browser(page: Page) -> None:
    different = []
    for name, data in SHOWN.items():
        theirs, ours = shown(page, data), np.asarray(to_plain(open_image(data, 1_000_000)), np.int16)
        rows = WITHOUT_LAST_BLOCKS if name in odd.UNENDED else len(ours)
        if theirs.shape != ours.shape or np.abs(theirs - ours)[:rows].mean() > TOLERANCE:
            different.append(name)
    assert not different
    assert len(SHOWN) > 70


@pytest.mark.parametrize("orientation", range(10))
def test_an_orientation_looks_as_in_a_browser(page: Page, orientation: int) -> None:
    for block in (odd.exif(orientation=orientation), odd.exif(orientation=orientation, order=">")):
        for data in (odd.jpeg_exif(block), odd.png(b"eXIf", block), odd.webp(b"EXIF", block)):
            ours = np.asarray(to_plain(open_image(data, 1_000_000)), np.int16)
            assert np.abs(shown(page, data) - ours).mean() <= TOLERANCE


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_a_picture_of_a_canvas_looks_as_in_the_browser(page: Page, media_type: str) -> None:
    data = decoded(page.evaluate(ENCODE, [data_uri(odd.PNG), media_type]))
    assert sniff(data) == media_type.removeprefix("image/").upper()
    assert np.abs(shown(page, data) - np.asarray(to_plain(open_image(data, 1_000_000)), np.int16)).mean() <= TOLERANCE
