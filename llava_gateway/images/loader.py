"""One call for a request's images: fetch or unpack, digest, and prepare each one, off the event loop and never twice."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from blake3 import blake3

from llava_gateway.chat import ImageUrl
from llava_gateway.engine import PreparedImage
from llava_gateway.images.cache import ImageCache
from llava_gateway.images.data_uri import decode_data_uri, is_data_uri
from llava_gateway.images.decode import TRANSFORM, Limits, prepare
from llava_gateway.images.fetch import Fetcher
from llava_gateway.settings import Settings


class ImageLoader:
    def __init__(self, settings: Settings, side: int) -> None:
        """`side`: pixels of the square that the model sees."""
        self.max_bytes = settings.max_image_mb << 20
        self.limits = Limits(side, settings.max_image_megapixels * 1_000_000)
        self.cache = ImageCache(settings.image_cache_mb << 20)
        self._fetcher = Fetcher(max_bytes=self.max_bytes, timeout=settings.image_timeout, allow_networks=settings.allow_networks)
        self._pool = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="image")

    async def load(self, images: Sequence[ImageUrl]) -> tuple[PreparedImage, ...]:
        """The images, prepared, in order. InvalidImage names the first that fails."""
        tasks = [asyncio.ensure_future(self._load(image)) for image in images]
        try:
            return tuple(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def close(self) -> None:
        await self._fetcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _load(self, image: ImageUrl) -> PreparedImage:
        loop = asyncio.get_running_loop()
        if is_data_uri(image.url):
            return await loop.run_in_executor(self._pool, self._unpack, image)
        data = await self._fetcher.fetch(image.url, image.param)
        return await loop.run_in_executor(self._pool, self._prepare, data, image.param)

    def _unpack(self, image: ImageUrl) -> PreparedImage:
        return self._prepare(decode_data_uri(image.url, self.max_bytes, image.param), image.param)

    def _prepare(self, data: bytes, param: str) -> PreparedImage:
        """Runs in the pool. Two equal images at once may both be decoded; every later one is found in the cache."""
        digest = f"{blake3(data).hexdigest()}-{TRANSFORM}-{self.limits.side}"
        prepared = self.cache.get(digest)
        if prepared is None:
            prepared = PreparedImage(prepare(data, self.limits, param), digest)
            self.cache.put(prepared)
        return prepared
