"""Two thousand damaged pictures, and what operators may set for images, on the real server."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from helpers.errors import refused
from helpers.origin import GRID as AT_ORIGIN
from helpers.origin import Origin
from helpers.requests import body, image, image_part
from helpers.server import Server
from PIL import Image

from llava_gateway.demo.images import data_uri, describe, draw, encode

CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"
GRID = ("red", "blue", "green", "orange")
COUNT = 2000


def files() -> list[bytes]:
    """Every format, and the forms of them that have decoders of their own."""
    picture = draw(GRID, (120, 90))
    found = [encode(picture, name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    options: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {"progressive": True}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture.convert("P"), "PNG", {}),
        (picture.convert("RGBA"), "PNG", {}),
        (picture.convert("I;16") if picture.mode == "I" else picture.convert("L"), "PNG", {}),
        (picture, "WEBP", {"lossless": True}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (picture, "GIF", {"save_all": True, "append_images": [draw(("black",) * 4, (120, 90))]}),
        (picture, "AVIF", {}),
        (picture, "HEIF", {}),
    ]
    for source, name, settings in options:
        buffer = io.BytesIO()
        source.save(buffer, name, **settings)
        found.append(buffer.getvalue())
    return found


def mutant(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly near the beginning, where sizes and tables are; or a piece cut out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16))):
        at = rng.randrange(min(len(changed), rng.choice((64, 400, len(changed)))))
        changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    start, end = sorted(rng.randrange(len(changed)) for _ in range(2))
    kind = rng.random()
    if kind < 0.1:
        del changed[start:end]
    elif kind < 0.2:
        changed[start:start] = changed[start:end]
    elif kind < 0.3:
        del changed[start:]
    return bytes(changed)


def test_two_thousand_damaged_images_do_not_harm_the_server(http: httpx.Client, server: Server) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    originals = files()
    process = psutil.Process(server.process.pid)

    def ask(number: int) -> int:
        rng = random.Random(number)
        picture = data_uri(mutant(rng.choice(originals), rng))
        answer = http.post(CHAT, json=body(image_part(picture), "Hello", max_tokens=1))
        if answer.status_code == 400:
            refused(answer, 400, URL)
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        before = 0
        statuses: list[int] = []
        for begin in range(0, COUNT, 500):
            statuses += pool.map(ask, range(begin, begin + 500))
            before = before or process.memory_info().rss
    assert set(statuses) == {200, 400}
    assert statuses.count(400) > COUNT // 10
    assert process.memory_info().rss - before < 300 << 20
    answer = http.post(CHAT, json=body(image(GRID), "Describe this image."))
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])


@pytest.mark.parametrize("ratio", ["crop", "pad", "resize"])
def test_request_chooses_crop_pad_or_resize(http: httpx.Client, ratio: str) -> None:
    """A wide picture whose middle is the grid: only the crop sees it alone; the others answer as for a picture made so before."""
    wide = Image.new("RGB", (1008, 336), "black")
    wide.paste(draw(GRID), (336, 0))
    before = wide
    if ratio == "pad":
        before = Image.new("RGB", (1008, 1008), (122, 116, 104))
        before.paste(wide, (0, 336))
    elif ratio == "resize":
        before = wide.resize((336, 336), Image.Resampling.BICUBIC)

    def say(picture: Image.Image, **fields: Any) -> str:
        answer = http.post(CHAT, json=body(image_part(data_uri(encode(picture))), "Describe this image.", **fields)).json()
        return str(answer["choices"][0]["message"]["content"])

    told = say(wide, image_aspect_ratio=ratio)
    assert told == say(before)
    assert (told == describe([GRID])) == (ratio == "crop")


def test_unknown_image_aspect_ratio_is_refused(http: httpx.Client) -> None:
    refused(http.post(CHAT, json=body(image(GRID), "hi", image_aspect_ratio="anyres")), 400, "image_aspect_ratio")


def test_cached_url_is_fetched_once(http: httpx.Client, origin: Origin) -> None:
    def ask(_: int) -> str:
        answer = http.post(CHAT, json=body(image_part(origin.url + "/cached"), "Describe this image.")).json()
        return str(answer["choices"][0]["message"]["content"])

    def fetches() -> int:
        return [path for path, *_ in origin.requests].count("/cached")

    before = fetches()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(12))) == {describe([AT_ORIGIN])}
    assert fetches() <= before + 1


def test_image_cache_hits_are_counted(http: httpx.Client) -> None:
    def value(name: str) -> float:
        return next(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))

    picture = body(image(("white", "white", "red", "red")), "Hello", max_tokens=1)
    http.post(CHAT, json=picture)
    decoded, cached = value('llava_images_total{source="decoded"}'), value('llava_images_total{source="cached"}')
    http.post(CHAT, json=picture)
    assert value('llava_images_total{source="decoded"}') == decoded
    assert value('llava_images_total{source="cached"}') == cached + 1
    assert value("llava_image_cache_bytes") >= 336 * 336 * 3
