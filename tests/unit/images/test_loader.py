"""The images of a request: each is decoded once, the limits of a request hold, and images do not delay one another."""

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
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
from llava_gateway.images.loader import LARGE, ImageLoader
from llava_gateway.images.memory import PreparedCache
from llava_gateway.model_info import VisionConfig
from llava_gateway.settings import Settings
from llava_gateway.types import ImageUrl

VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)
GRID = ("red", "blue", "green", "orange")
BOUND = 120
"""Seconds. Nothing in this file takes so long, even on a busy machine."""
PATIENT = {"image_timeout": BOUND, "image_connect_timeout": BOUND, "image_read_timeout": BOUND}
"""Timeouts of the fetches. The defaults of 3 to 10 seconds can expire on a machine that is busy or that pauses."""


def run(work: Callable[[ImageLoader], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        loader = ImageLoader(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **PATIENT | settings))
        try:
            await asyncio.wait_for(work(loader), 2 * BOUND)
        finally:
            await loader.close()
            for threads in (loader._small, loader._large):  # a thread of this test must not call the patched functions of the next test
                await asyncio.to_thread(threads._pool.shutdown)

    asyncio.run(main())


def urls(*data: str) -> list[ImageUrl]:
    return [ImageUrl(url, f"image[{index}]") for index, url in enumerate(data)]


def count(name: str, source: str) -> float:
    return REGISTRY.get_sample_value(name, {"source": source}) or 0


def plain(width: int, height: int, seed: int = 0) -> str:
    """Return an image of one colour, which takes few bytes."""
    return data_uri(encode(Image.new("RGB", (width, height), (seed, 0, 0))))


def noise(width: int, height: int, seed: int = 0) -> str:
    """Return an image that takes as many bytes as its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG", compress_level=1)
    return data_uri(buffer.getvalue())


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Lets threads continue. The event is set at the end, so that no thread outlives a test that fails."""
    event = threading.Event()
    yield event
    event.set()


def test_an_image_is_not_decoded_twice_for_one_transform(origin: Origin) -> None:
    """The image comes twice in a request, in concurrent and later requests, and as a URL."""

    async def work(loader: ImageLoader) -> None:
        image = data_uri(encode(draw(("purple", "green", "white", "orange"))))  # the origin has the same image
        decoded, cached, shared = (count("llava_images_total", source) for source in ("decoded", "cached", "shared"))
        first, *others = await asyncio.gather(*(loader.load(urls(image, image), VISION) for _ in range(5)))
        assert all(each is first[0] for images in others for each in images)
        assert count("llava_images_total", "decoded") == decoded + 1
        reused = count("llava_images_total", "shared") - shared + count("llava_images_total", "cached") - cached
        assert reused == 9  # how many of these are `cached` depends on when the image is ready
        cached = count("llava_images_total", "cached")
        await loader.load(urls(image, f"{origin.url}/picture"), VISION)
        assert count("llava_images_total", "cached") == cached + 2
        (padded,) = await loader.load(urls(image), VISION, "pad")
        assert padded.digest != first[0].digest
        assert count("llava_images_total", "decoded") == decoded + 2

    run(work)


def test_a_fresh_url_is_neither_fetched_nor_decoded_again(origin: Origin) -> None:
    async def work(loader: ImageLoader) -> None:
        url = f"{origin.url}/cached"
        (first,) = await loader.load(urls(url), VISION)
        before = len(origin.requests)
        (again,) = await loader.load(urls(url), VISION)
        assert again is first
        assert len(origin.requests) == before
        (padded,) = await loader.load(urls(url), VISION, "pad")  # needs the file, which is fetched again
        assert padded is not first
        loader.cache = PreparedCache(0)
        assert (await loader.load(urls(url), VISION))[0].digest == first.digest

    run(work)


def test_an_unchanged_url_whose_image_was_evicted_does_not_fail(origin: Origin) -> None:
    async def work(loader: ImageLoader) -> None:
        url = f"{origin.url}/tagged"
        (first,) = await loader.load(urls(url), VISION)
        assert (await loader.load(urls(url), VISION))[0].digest == first.digest

    run(work, image_cache_mb=0)


@pytest.mark.parametrize("path", ["/cached", "/tagged"])
@pytest.mark.parametrize("step", ["open_image", "prepare"])
def test_a_url_whose_image_is_being_prepared_is_not_fetched_again(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, go_on: threading.Event, path: str, step: str
) -> None:
    """A request that comes between the fetch and the end of `step` uses the same file, also if the first request is cancelled.

    Each request has its own limits: one of them has too many images, and fails alone.
    """
    url, opened = f"{origin.url}{path}", threading.Semaphore(0)

    def blocking(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "open_image":
                opened.release()
            assert name != step or go_on.wait(BOUND)
            return function(*arguments)

        return call

    for name, function in (("open_image", open_image), ("prepare", prepare)):
        monkeypatch.setattr(f"llava_gateway.images.loader.{name}", blocking(name, function))

    async def wait_for_opened(count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(opened.acquire, timeout=BOUND)

    def downloads() -> int:
        return sum(asked == path and "if-none-match" not in headers for asked, headers in origin.requests)

    async def work(loader: ImageLoader) -> None:
        before = downloads()
        cancelled = asyncio.create_task(loader.load(urls(url), VISION))
        await wait_for_opened(1)
        small = asyncio.create_task(loader.load(urls(url), VISION))
        await wait_for_opened(1)
        too_large = asyncio.create_task(loader.load(urls(*[url] * 10), VISION))
        await wait_for_opened(10 if step == "open_image" else 9)  # nine images exceed the limit; then the tenth may not be opened
        cancelled.cancel()
        go_on.set()
        with pytest.raises(InvalidImage, match="1 million pixels together"):
            await too_large
        assert (await small)[0].source == (336, 336)
        assert downloads() == before + 1

    run(work, image_threads=12, max_request_megapixels=1)


def test_the_pixels_of_a_request_are_limited() -> None:
    async def work(loader: ImageLoader) -> None:
        images = urls(*(plain(1000, 900, seed) for seed in range(3)))
        assert await loader.load(images[:2], VISION)
        for _ in range(2):  # images from the cache count, too
            with pytest.raises(InvalidImage, match="2 million pixels together") as refusal:
                await loader.load(images, VISION)
            assert refusal.value.code == "image_too_large"
            assert refusal.value.param

    run(work, max_request_megapixels=2)


def test_the_bytes_of_a_request_are_limited() -> None:
    async def work(loader: ImageLoader) -> None:
        images = urls(*(noise(400, 400, seed) for seed in range(3)))  # 480 kB each
        assert await loader.load(images[:2], VISION)
        with pytest.raises(InvalidImage, match="1 MiB together"):
            await loader.load(images, VISION)

    run(work, max_request_image_mb=1)


def test_large_images_do_not_delay_small_ones(monkeypatch: pytest.MonkeyPatch, go_on: threading.Event) -> None:
    """The small image is loaded while the decoding of the large images is blocked."""
    started = threading.Event()

    def blocking(image: Image.Image, *arguments: Any) -> Image.Image:
        if image.width * image.height > LARGE:
            started.set()
            assert go_on.wait(BOUND)
        return prepare(image, *arguments)

    monkeypatch.setattr("llava_gateway.images.loader.prepare", blocking)

    async def work(loader: ImageLoader) -> None:
        large = [asyncio.create_task(loader.load(urls(plain(1001, 1000, seed)), VISION)) for seed in range(3)]
        assert await asyncio.to_thread(started.wait, BOUND)
        await loader.load(urls(plain(50, 50)), VISION)
        assert not any(task.done() for task in large)
        go_on.set()
        await asyncio.gather(*large)

    run(work, image_threads=1)


def test_the_error_names_the_first_bad_image() -> None:
    async def work(loader: ImageLoader) -> None:
        with pytest.raises(InvalidImage) as refusal:
            await loader.load(urls(data_uri(encode(draw(GRID))), "data:image/png;base64,AAAA"), VISION)
        assert refusal.value.param == "image[1]"

    run(work)
