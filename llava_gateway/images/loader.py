"""Loads the images of a request: fetches or decodes the base64, checks the size and prepares the pixels, off the event loop."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3
from PIL import Image

from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import InvalidImage, image_too_large
from llava_gateway.images.decode import Transform, extension, is_cheap, open_image, prepare
from llava_gateway.images.fair_queue import FairThreads
from llava_gateway.images.geometry import Size
from llava_gateway.images.http_cache import FetchedFile, UrlCache
from llava_gateway.images.image_workers import ImageWorkers
from llava_gateway.images.inline import decode_inlined, inlined
from llava_gateway.images.memory import PendingFiles, PreparedCache
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.model_info import VisionConfig
from llava_gateway.observability import metrics
from llava_gateway.observability.context import current_context, timed
from llava_gateway.settings import AspectRatio, Settings
from llava_gateway.types import ImageFileId, ImageSource, PreparedImage

BYTES_PER_PIXEL = 3
"""The memory of a prepared image in RGB."""
T = TypeVar("T")

ReadFile = Callable[[str], Awaitable[bytes | None]]
"""Returns the content of an uploaded file of the current request's API key by its id. None: there is no such file, or it has expired."""


async def _no_file(file_id: str) -> None:
    """Know no file; for a loader without uploaded files."""


LARGE = 1_000_000
"""An image with more pixels is decoded in separate threads, so that small images need not wait for it."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file as the client sent it. The file has been decoded without an error."""

    name: str
    """The digest of the data and the extension of the format: `<64 hex digits>.png`."""
    data: bytes


class ImageLoader:
    """Loads images, and decodes each image once for each transform. Used from one event loop."""

    def __init__(self, settings: Settings, read_file: ReadFile = _no_file) -> None:
        self.settings = settings
        self._read_file = read_file
        self.max_bytes = settings.max_image_mb << 20
        self.max_pixels = settings.max_image_megapixels * 1_000_000
        self.cache: PreparedCache[PreparedImage] = PreparedCache(settings.image_cache_mb << 20)
        self.urls = UrlCache(settings)
        self._preparing: SingleFlight[PreparedImage] = SingleFlight()
        self._small = FairThreads(settings.image_threads, "image")
        self._large = FairThreads(settings.image_threads, "large-image")
        self._workers = ImageWorkers(settings)
        self.pending_files = PendingFiles(settings.max_bodies_mb << 20)
        metrics.IMAGE_CACHE_BYTES.set_function(lambda: self.cache.bytes)
        metrics.IMAGE_FILE_BYTES.set_function(lambda: self.pending_files.bytes)
        metrics.URL_CACHE_BYTES.set_function(lambda: self.urls.bytes)
        metrics.IMAGE_WORKERS.set_function(lambda: self._workers.alive)
        metrics.IMAGES_WAITING.set_function(lambda: self._workers.waiting)

    async def load(
        self, images: Sequence[ImageSource], vision: VisionConfig, aspect_ratio: AspectRatio | None = None
    ) -> tuple[PreparedImage, ...]:
        """Return the images, prepared for a model, in order.

        `vision`: of the model. `aspect_ratio`: how images become square; None for the server's setting. Raises InvalidImage, whose `param`
        is the first image that fails, and TooManyRequests.
        """
        transform = self._transform(vision, aspect_ratio)
        budget = _Budget(self.settings)
        loaded = await gather_limited(lambda image: _name_failure(self._load, image, transform, budget), images)
        current_context().images += [f"{image.digest[:16]} {image.source[0]}x{image.source[1]}" for image in loaded]
        return tuple(loaded)

    async def files(self, images: Sequence[ImageSource], vision: VisionConfig) -> tuple[ImageFile, ...]:
        """Return the image files as the client sent them, in order. Each file is one that `load` accepts.

        Raises InvalidImage, whose `param` is the first image that fails, and TooManyRequests.
        """
        transform = self._transform(vision)
        budget = _Budget(self.settings)
        return tuple(await gather_limited(lambda image: _name_failure(self._load_file, image, transform, budget), images))

    async def check_file(self, data: bytes, vision: VisionConfig) -> str:
        """Return the name of an image file's format, such as `png`. The image is then in the cache. Raises InvalidImage."""
        if len(data) > self.max_bytes:
            raise image_too_large(self.max_bytes)
        digest = await self._small.run(current_context().client, _digest, data)
        await self._get_prepared(digest, data, self._transform(vision), _Budget(self.settings))
        return extension(data)

    async def close(self) -> None:
        """Stop the threads and the worker processes."""
        await self.urls.close()
        for pool in (self._small, self._large):
            pool.close()
        await self._workers.close()

    def _transform(self, vision: VisionConfig, aspect_ratio: AspectRatio | None = None) -> Transform:
        setting = self.settings.image_aspect_ratio
        return Transform(vision, aspect_ratio or (vision.aspect_ratio if setting == "auto" else setting))

    async def _load(self, image: ImageSource, transform: Transform, budget: "_Budget") -> PreparedImage:
        source = await self._read(image)
        if not isinstance(source, str):
            return await self._get_prepared(*source, transform, budget)
        file = await self.urls.load(source, lambda file: self._is_sufficient(file, transform))
        # `file` stays referenced until the image is in the cache. Meanwhile other requests for the URL get the same file without a fetch.
        return await self._get_prepared(file.digest, file.data, transform, budget)

    def _is_sufficient(self, file: FetchedFile, transform: Transform) -> bool:
        """Return whether the image can be prepared, or is in the cache."""
        return file.data is not None or _cache_key(file.digest, transform) in self.cache

    async def _load_file(self, image: ImageSource, transform: Transform, budget: "_Budget") -> ImageFile:
        source = await self._read(image)
        if not isinstance(source, str):
            digest, data = source
        else:
            with timed("fetch"):
                file = await self.urls.fetch(source, reload=True)
            assert file.data is not None
            digest, data = file.digest, file.data
        await self._get_prepared(digest, data, transform, budget)
        return ImageFile(f"{digest}.{extension(data)}", data)

    async def _read(self, image: ImageSource) -> tuple[str, bytes] | str:
        """Return the digest and the bytes of an uploaded or inlined image, or the URL of another one. Raises InvalidImage."""
        if not isinstance(image, ImageFileId):
            source = inlined(image)
            return source if isinstance(source, str) else await self._small.run(current_context().client, self._decode_inlined, source)
        if (data := await self._read_file(image.file_id)) is None:
            raise InvalidImage(
                "There is no such file. Files expire, and each API key has its own: upload the image again.", code="image_file_not_found"
            )
        return await self._small.run(current_context().client, _digest, data), data

    async def _get_prepared(self, digest: str, data: bytes | None, transform: Transform, budget: "_Budget") -> PreparedImage:
        """Return the prepared image from the cache, or prepare it.

        `digest`: of the file. `data`: the file; None only if the cache has the image.
        """
        budget.spend(size=len(data or b""))
        if prepared := self.cache.get(_cache_key(digest, transform)):
            metrics.IMAGES.labels("cached").inc()
            budget.spend(pixels=prepared.source[0] * prepared.source[1])
            return prepared
        assert data is not None
        client = current_context().client
        with self.pending_files.hold(digest, len(data)):
            opened = await self._small.run(client, self._open_if_cheap, data)
            size = opened.size if opened else await self._workers.measure(data, client)
            budget.spend(pixels=size[0] * size[1])
            return await self._prepare(opened, data, size, _cache_key(digest, transform), transform)

    def _open_if_cheap(self, data: bytes) -> Image.Image | None:
        """Return the opened image, or None if its cost is not known and a worker must open it."""
        return open_image(data, self.max_pixels) if is_cheap(data) else None

    def _decode_inlined(self, inline: memoryview) -> tuple[str, bytes]:
        """Return the digest of the file, and the file."""
        data = decode_inlined(inline, self.max_bytes)
        return _digest(data), data

    async def _prepare(self, image: Image.Image | None, data: bytes, source: Size, cache_key: str, transform: Transform) -> PreparedImage:
        """Prepare an opened image in a thread, or a file that could not be opened here in a worker.

        `data`: the file. `source`: the size that the file declares.
        """

        async def work() -> PreparedImage:
            client = current_context().client
            if image is None:
                pixels = await self._workers.prepare(data, transform.target(source), client)
            else:
                threads = self._large if source[0] * source[1] > LARGE else self._small
                pixels = await threads.run(client, prepare, image, data, transform)
            prepared = PreparedImage(pixels, cache_key, source, transform.vision.tokens(*pixels.size))
            self.cache.put(prepared, BYTES_PER_PIXEL * pixels.width * pixels.height)
            return prepared

        if prepared := self.cache.get(cache_key):  # another request has prepared it while this one opened the file
            metrics.IMAGES.labels("cached").inc()
            return prepared
        metrics.IMAGES.labels("shared" if cache_key in self._preparing else "decoded").inc()
        with timed("decode"):
            return await self._preparing.do(cache_key, work)


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()


class _Budget:
    """The limits on all images of one request together."""

    def __init__(self, settings: Settings) -> None:
        self.megabytes, self.megapixels = settings.max_request_image_mb, settings.max_request_megapixels
        self._bytes = self.megabytes << 20
        self._pixels = self.megapixels * 1_000_000

    def spend(self, *, size: int = 0, pixels: int = 0) -> None:
        """Count an image's file or pixels. Raises InvalidImage if the limit is exceeded. `size`: in bytes."""
        self._bytes -= size
        self._pixels -= pixels
        if self._bytes < 0:
            raise InvalidImage(f"The images of this request are larger than {self.megabytes} MiB together.", code="image_too_large")
        if self._pixels < 0:
            raise InvalidImage(
                f"The images of this request have more than {self.megapixels} million pixels together.", code="image_too_large"
            )


Load = Callable[[ImageSource, Transform, _Budget], Awaitable[T]]


async def _name_failure(load: Load[T], image: ImageSource, transform: Transform, budget: _Budget) -> T:
    """Return the result of `load`. An InvalidImage that it raises gets the image's position in the request as `param`."""
    try:
        return await load(image, transform, budget)
    except InvalidImage as error:
        raise InvalidImage(error.message, param=image.param, code=error.code) from error


def _cache_key(digest: str, transform: Transform) -> str:
    """Return the key of a prepared image. `digest`: of the file."""
    return f"{digest}-{transform.name}"
