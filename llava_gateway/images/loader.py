"""One call for a request's images: fetch or unpack, measure, and prepare each one, off the event loop and never twice."""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3
from PIL import Image

from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import InvalidImage, TooManyRequests
from llava_gateway.images.decode import Transform, extension, is_cheap, open_image, prepare
from llava_gateway.images.fair_queue import FairThreads
from llava_gateway.images.geometry import Size
from llava_gateway.images.http_cache import Fetched, UrlImages
from llava_gateway.images.inline import decode_inlined, inlined
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.images.worker_pool import WorkerPool
from llava_gateway.observability import metrics
from llava_gateway.observability.context import current_context, timed
from llava_gateway.settings import AspectRatio, Settings
from llava_gateway.types import ImageSource, PreparedImage, VisionConfig

BYTES_PER_PIXEL = 3


class ImageCache:
    """For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._images: OrderedDict[str, PreparedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, digest: str) -> bool:
        return digest in self._images

    def get(self, digest: str) -> PreparedImage | None:
        image = self._images.get(digest)
        if image is not None:
            self._images.move_to_end(digest)
        return image

    def put(self, image: PreparedImage) -> None:
        if image.digest in self._images or _pixel_bytes(image) > self.max_bytes:
            return
        self._images[image.digest] = image
        self.bytes += _pixel_bytes(image)
        while self.bytes > self.max_bytes:
            _, oldest = self._images.popitem(last=False)
            self.bytes -= _pixel_bytes(oldest)


def _pixel_bytes(image: PreparedImage) -> int:
    return image.pixels.width * image.pixels.height * BYTES_PER_PIXEL


T = TypeVar("T")

LARGE = 1_000_000
"""Pixels from which an image is decoded by threads of its own, so that small ones need not wait for it."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture as it came, which was found whole."""

    name: str
    """Digest of the data, and its format: `<64 hex digits>.png`."""
    data: bytes


class ImageLoader:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.max_bytes = settings.max_image_mb << 20
        self.max_pixels = settings.max_image_megapixels * 1_000_000
        self.cache = ImageCache(settings.image_cache_mb << 20)
        self._urls = UrlImages(settings)
        self._preparing: SingleFlight[PreparedImage] = SingleFlight()
        self._small = FairThreads(settings.image_threads, "image")
        self._large = FairThreads(settings.image_threads, "large-image")
        self._workers = WorkerPool(settings)
        self._files = _Files(settings.max_bodies_mb << 20)
        metrics.IMAGE_CACHE_BYTES.set_function(lambda: self.cache.bytes)
        metrics.IMAGE_FILE_BYTES.set_function(lambda: self._files.bytes)
        metrics.IMAGE_WORKERS.set_function(lambda: self._workers.alive)
        metrics.IMAGES_WAITING.set_function(lambda: self._workers.waiting)

    async def load(
        self, images: Sequence[ImageSource], vision: VisionConfig, aspect_ratio: AspectRatio | None = None
    ) -> tuple[PreparedImage, ...]:
        """The images, prepared for a model that sees so, in order; `aspect_ratio` where it is not to be the server's. InvalidImage names
        the first that fails."""
        transform = self._transform(vision, aspect_ratio)
        budget = _Budget(self.settings)
        loaded = await gather_limited(lambda image: _named(self._load, image, transform, budget), images)
        current_context().images += [f"{image.digest[:16]} {image.source[0]}x{image.source[1]}" for image in loaded]
        return tuple(loaded)

    async def files(self, images: Sequence[ImageSource], vision: VisionConfig) -> tuple[ImageFile, ...]:
        """The images as they came, in order, each of which `load` would take. InvalidImage names the first that fails."""
        transform = self._transform(vision)
        budget = _Budget(self.settings)
        return tuple(await gather_limited(lambda image: _named(self._file, image, transform, budget), images))

    async def close(self) -> None:
        await self._urls.close()
        for pool in (self._small, self._large):
            pool.close()
        await self._workers.close()

    def _transform(self, vision: VisionConfig, aspect_ratio: AspectRatio | None = None) -> Transform:
        ours = self.settings.image_aspect_ratio
        return Transform(vision, aspect_ratio or (vision.aspect_ratio if ours == "auto" else ours))

    async def _load(self, image: ImageSource, transform: Transform, budget: "_Budget") -> PreparedImage:
        url = inlined(image)
        if isinstance(url, memoryview):
            content, data = await self._small.run(current_context().client, self._unpack, url)
            return await self._prepared(content, data, transform, budget)
        fetched = self._urls.fresh(url)
        if fetched and self._suffices(fetched, transform):
            metrics.IMAGE_URLS.labels("fresh").inc()
        else:
            with timed("fetch"):
                fetched = await self._urls.fetch(url)
                if not self._suffices(fetched, transform):
                    fetched = await self._urls.fetch(url, anew=True)
        # Kept until the picture is in the cache, `fetched` spares whoever asks meanwhile a fetch of the same file.
        return await self._prepared(fetched.content, fetched.data, transform, budget)

    def _suffices(self, fetched: Fetched, transform: Transform) -> bool:
        return fetched.data is not None or _key(fetched.content, transform) in self.cache

    async def _file(self, image: ImageSource, transform: Transform, budget: "_Budget") -> ImageFile:
        url = inlined(image)
        if isinstance(url, memoryview):
            content, data = await self._small.run(current_context().client, self._unpack, url)
        else:
            with timed("fetch"):
                fetched = await self._urls.fetch(url, anew=True)
            assert fetched.data is not None
            content, data = fetched.content, fetched.data
        await self._prepared(content, data, transform, budget)
        return ImageFile(f"{content}.{extension(data)}", data)

    async def _prepared(self, content: str, data: bytes | None, transform: Transform, budget: "_Budget") -> PreparedImage:
        """`data`: None if the cache has the image."""
        budget.spend(size=len(data or b""))
        if prepared := self.cache.get(_key(content, transform)):
            metrics.IMAGES.labels("cached").inc()
            budget.spend(pixels=prepared.source[0] * prepared.source[1])
            return prepared
        assert data is not None
        client = current_context().client
        with self._files.held(content, len(data)):
            opened = await self._small.run(client, self._open_cheap, data)
            size = opened.size if opened else await self._workers.measure(data, client)
            budget.spend(pixels=size[0] * size[1])
            return await self._prepare(opened or data, size, _key(content, transform), transform)

    def _open_cheap(self, data: bytes) -> Image.Image | None:
        """None: a worker has to open the image, for what it costs is not known."""
        return open_image(data, self.max_pixels) if is_cheap(data) else None

    def _unpack(self, inline: memoryview) -> tuple[str, bytes]:
        data = decode_inlined(inline, self.max_bytes)
        return blake3(data).hexdigest(), data

    async def _prepare(self, image: Image.Image | bytes, source: Size, digest: str, transform: Transform) -> PreparedImage:
        """Of an opened image in a thread, of a file in a worker."""

        async def work() -> PreparedImage:
            client = current_context().client
            if isinstance(image, bytes):
                pixels = await self._workers.prepare(image, transform.target(source), client)
            else:
                threads = self._large if source[0] * source[1] > LARGE else self._small
                pixels = await threads.run(client, prepare, image, transform)
            prepared = PreparedImage(pixels, digest, source, transform.vision.tokens(*pixels.size))
            self.cache.put(prepared)
            return prepared

        if prepared := self.cache.get(digest):  # by another request, while this one opened its file
            metrics.IMAGES.labels("cached").inc()
            return prepared
        metrics.IMAGES.labels("shared" if digest in self._preparing else "decoded").inc()
        with timed("decode"):
            return await self._preparing.do(digest, work)


class _Files:
    """The files that are being decoded or wait for that, each counted once, whoever asks for it."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._holders: Counter[str] = Counter()

    @contextmanager
    def held(self, content: str, size: int) -> Iterator[None]:
        """Raises TooManyRequests."""
        if not self._holders[content]:
            if self.bytes + size > self._max_bytes:
                raise TooManyRequests("Too many images wait to be decoded. Try again later.", code="queue_full", retry_after=1)
            self.bytes += size
        self._holders[content] += 1
        try:
            yield
        finally:
            self._holders[content] -= 1
            if not self._holders[content]:
                del self._holders[content]
                self.bytes -= size


class _Budget:
    """What the images of one request may come to together."""

    def __init__(self, settings: Settings) -> None:
        self.megabytes, self.megapixels = settings.max_request_image_mb, settings.max_request_megapixels
        self._bytes = self.megabytes << 20
        self._pixels = self.megapixels * 1_000_000

    def spend(self, *, size: int = 0, pixels: int = 0) -> None:
        self._bytes -= size
        self._pixels -= pixels
        if self._bytes < 0:
            raise InvalidImage(f"The images of this request are larger than {self.megabytes} MiB together.", code="image_too_large")
        if self._pixels < 0:
            raise InvalidImage(
                f"The images of this request have more than {self.megapixels} million pixels together.", code="image_too_large"
            )


Load = Callable[[ImageSource, Transform, _Budget], Awaitable[T]]


async def _named(load: Load[T], image: ImageSource, transform: Transform, budget: _Budget) -> T:
    """InvalidImage then says which image of the request it is."""
    try:
        return await load(image, transform, budget)
    except InvalidImage as error:
        raise InvalidImage(error.message, param=image.param, code=error.code) from error


def _key(content: str, transform: Transform) -> str:
    return f"{content}-{transform.name}"
