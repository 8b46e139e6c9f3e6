"""A request's images: once, within what they may come to, and without standing in each other's way."""

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest
from helpers.origin import Origin
from PIL import Image
from prometheus_client import REGISTRY

from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images.decode import open_image, prepare
from llava_gateway.images.loader import ImageLoader
from llava_gateway.settings import Settings
from llava_gateway.types import ImageUrl, VisionConfig

VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)
GRID = ("red", "blue", "green", "orange")


def run(work: Callable[[ImageLoader], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        loader = ImageLoader(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **settings))
        try:
            await work(loader)
        finally:
            await loader.close()

    asyncio.run(main())


def urls(*data: str) -> list[ImageUrl]:
    return [ImageUrl(url, f"image[{index}]") for index, url in enumerate(data)]


def count(name: str, source: str) -> float:
    return REGISTRY.get_sample_value(name, {"source": source}) or 0


def noise(width: int, height: int, seed: int = 0) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG", compress_level=1)
    return data_uri(buffer.getvalue())


def test_once_however_it_comes(origin: Origin) -> None:
    """In the same request, at the same time in others, later, and as a URL: one picture is decoded once for each transform."""

    async def work(loader: ImageLoader) -> None:
        picture = data_uri(encode(draw(("purple", "green", "white", "orange"))))  # what the origin has, too
        decoded, cached, shared = (count("llava_images_total", source) for source in ("decoded", "cached", "shared"))
        first, *others = await asyncio.gather(*(loader.load(urls(picture, picture), VISION) for _ in range(5)))
        assert all(image is first[0] for images in others for image in images)
        assert count("llava_images_total", "decoded") == decoded + 1
        assert count("llava_images_total", "shared") - shared + count("llava_images_total", "cached") - cached == 9  # it may be ready early
        cached = count("llava_images_total", "cached")
        await loader.load(urls(picture, f"{origin.url}/picture"), VISION)
        assert count("llava_images_total", "cached") == cached + 2
        (padded,) = await loader.load(urls(picture), VISION, "pad")
        assert padded.digest != first[0].digest
        assert count("llava_images_total", "decoded") == decoded + 2

    run(work)


def test_a_fresh_url_is_neither_fetched_nor_decoded(origin: Origin) -> None:
    async def work(loader: ImageLoader) -> None:
        url = f"{origin.url}/cached"
        (first,) = await loader.load(urls(url), VISION)
        before = len(origin.requests)
        (again,) = await loader.load(urls(url), VISION)
        assert again is first
        assert len(origin.requests) == before
        (padded,) = await loader.load(urls(url), VISION, "pad")  # which needs the file
        assert padded is not first
        loader.cache.max_bytes = 0
        loader.cache.__init__(0)  # type: ignore[misc]
        assert (await loader.load(urls(url), VISION))[0].digest == first.digest

    run(work)


def test_an_unchanged_url_whose_picture_was_forgotten_is_fetched_anew(origin: Origin) -> None:
    async def work(loader: ImageLoader) -> None:
        url = f"{origin.url}/tagged"
        (first,) = await loader.load(urls(url), VISION)
        assert (await loader.load(urls(url), VISION))[0].digest == first.digest

    run(work, image_cache_mb=0)


@pytest.mark.parametrize("path", ["/cached", "/tagged"])
@pytest.mark.parametrize("step", ["open_image", "prepare"])
def test_a_url_whose_picture_is_being_prepared_is_not_fetched_again(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, path: str, step: str
) -> None:
    """Whoever asks at any step between the fetch and the cache has a budget of its own, and need not care who leaves."""
    url, opened, go_on = f"{origin.url}{path}", threading.Semaphore(0), threading.Event()

    def halting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def halted(*arguments: Any) -> Any:
            if name == "open_image":
                opened.release()
            assert name != step or go_on.wait(30)
            return work(*arguments)

        return halted

    for name, done in (("open_image", open_image), ("prepare", prepare)):
        monkeypatch.setattr(f"llava_gateway.images.loader.{name}", halting(name, done))

    async def wait_for_opened(count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(opened.acquire, timeout=30)

    def sent() -> int:
        return sum(asked == path and "if-none-match" not in headers for asked, headers in origin.requests)

    async def work(loader: ImageLoader) -> None:
        before = sent()
        leaving = asyncio.create_task(loader.load(urls(url), VISION))
        await wait_for_opened(1)
        modest = asyncio.create_task(loader.load(urls(url), VISION))
        await wait_for_opened(1)
        greedy = asyncio.create_task(loader.load(urls(*[url] * 10), VISION))
        await wait_for_opened(10 if step == "open_image" else 9)  # nine are too many, after which the tenth may not be opened any more
        leaving.cancel()
        go_on.set()
        with pytest.raises(InvalidImage, match="1 million pixels together"):
            await greedy
        assert (await modest)[0].source == (336, 336)
        assert sent() == before + 1

    run(work, image_threads=12, max_request_megapixels=1)


def test_pixels_of_a_request_are_bounded() -> None:
    async def work(loader: ImageLoader) -> None:
        pictures = urls(*(noise(1000, 900, seed) for seed in range(3)))
        assert await loader.load(pictures[:2], VISION)
        for _ in range(2):  # cached or not
            with pytest.raises(InvalidImage, match="2 million pixels together") as refusal:
                await loader.load(pictures, VISION)
            assert refusal.value.code == "image_too_large"
            assert refusal.value.param

    run(work, max_request_megapixels=2)


def test_bytes_of_a_request_are_bounded() -> None:
    async def work(loader: ImageLoader) -> None:
        pictures = urls(*(noise(400, 400, seed) for seed in range(3)))  # 480 kB each
        assert await loader.load(pictures[:2], VISION)
        with pytest.raises(InvalidImage, match="1 MiB together"):
            await loader.load(pictures, VISION)

    run(work, max_request_image_mb=1)


def test_large_images_do_not_hold_up_small_ones() -> None:
    async def work(loader: ImageLoader) -> None:
        large = [asyncio.create_task(loader.load(urls(noise(3000, 2000, seed)), VISION)) for seed in range(3)]
        await asyncio.sleep(0.1)
        start = time.monotonic()
        await loader.load(urls(noise(50, 50)), VISION)
        assert not any(task.done() for task in large) or time.monotonic() - start < 0.2
        await asyncio.gather(*large)

    run(work, image_threads=1, max_image_mb=64)


def test_the_first_bad_image_is_named() -> None:
    async def work(loader: ImageLoader) -> None:
        with pytest.raises(InvalidImage) as refusal:
            await loader.load(urls(data_uri(encode(draw(GRID))), "data:image/png;base64,AAAA"), VISION)
        assert refusal.value.param == "image[1]"

    run(work)
