"""Loads the videos of a request: fetches or decodes the base64, samples and resizes the frames, off the event loop."""

from collections.abc import Sequence

from blake3 import blake3

from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import InvalidImage, InvalidVideo
from llava_gateway.images.fair_queue import FairThreads
from llava_gateway.images.fetch import FetchLimits
from llava_gateway.images.http_cache import FetchedFile, UrlCache
from llava_gateway.images.inline import decode_inlined, inlined
from llava_gateway.images.loader import ImageLoader
from llava_gateway.images.memory import PreparedCache
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.model_info import VideoConfig
from llava_gateway.observability import metrics
from llava_gateway.observability.context import current_context, timed
from llava_gateway.settings import Settings
from llava_gateway.types import ImageUrl, PreparedVideo, VideoUrl
from llava_gateway.videos.video_workers import VideoTransform, VideoWorkers


class VideoLoader:
    """Loads videos, and decodes each video once for each model. Used from one event loop."""

    def __init__(self, settings: Settings, images: ImageLoader) -> None:
        """`images`: the loader whose connections and whose count of waiting files are shared. It must be closed after this one."""
        self.settings = settings
        self.max_bytes = settings.max_video_mb << 20
        self.cache: PreparedCache[PreparedVideo] = PreparedCache(settings.video_cache_mb << 20)
        limits = FetchLimits("video/*", self.max_bytes, settings.video_timeout, settings.video_downloads)
        self._urls = UrlCache(settings, images.urls.fetcher.with_limits(limits), metrics.VIDEO_URLS)
        self._preparing: SingleFlight[PreparedVideo] = SingleFlight()
        self._threads = FairThreads(settings.image_threads, "video")
        self._workers = VideoWorkers(settings)
        self._pending_files = images.pending_files
        metrics.VIDEO_CACHE_BYTES.set_function(lambda: self.cache.bytes)
        metrics.VIDEO_WORKERS.set_function(lambda: self._workers.alive)
        metrics.VIDEOS_WAITING.set_function(lambda: self._workers.waiting)

    async def load(self, videos: Sequence[VideoUrl], video: VideoConfig) -> tuple[PreparedVideo, ...]:
        """Return the videos, prepared for a model, in order.

        `video`: of the model. Raises InvalidVideo, whose `param` is the first video that fails, TooManyRequests and Unavailable.
        """
        if len(videos) > self.settings.max_request_videos:
            message = f"A request may have at most {self.settings.max_request_videos} videos."
            raise InvalidVideo(message, param=videos[self.settings.max_request_videos].param, code="video_too_large")
        transform = VideoTransform(video, min(self.settings.video_frames, video.max_frames))
        budget = _Budget(self.settings)

        async def load(source: VideoUrl) -> PreparedVideo:
            try:
                return await self._load(source, transform, budget)
            except InvalidVideo as error:
                raise InvalidVideo(error.message, param=source.param, code=error.code) from error
            except InvalidImage as error:
                raise _as_video_error(error, source.param) from error

        loaded = await gather_limited(load, videos)
        current_context().videos += [
            f"{video.digest[:16]} {video.source[0]}x{video.source[1]} {video.seconds:.1f}s {len(video.frames)} frames" for video in loaded
        ]
        return tuple(loaded)

    async def close(self) -> None:
        """Stop the threads and the worker processes."""
        self._threads.close()
        await self._workers.close()

    async def _load(self, source: VideoUrl, transform: VideoTransform, budget: "_Budget") -> PreparedVideo:
        given = inlined(ImageUrl(source.url, source.param))
        if not isinstance(given, str):
            digest, data = await self._threads.run(current_context().client, self._decode_inlined, given)
            return await self._get_prepared(digest, data, transform, budget)
        file = await self._urls.load(given, lambda file: self._is_sufficient(file, transform))
        # `file` stays referenced until the video is in the cache. Meanwhile other requests for the URL get the same file without a fetch.
        return await self._get_prepared(file.digest, file.data, transform, budget)

    def _is_sufficient(self, file: FetchedFile, transform: VideoTransform) -> bool:
        """Return whether the video can be prepared, or is in the cache."""
        return file.data is not None or _cache_key(file.digest, transform) in self.cache

    def _decode_inlined(self, inline: memoryview) -> tuple[str, bytes]:
        """Return the digest of the file, and the file."""
        data = decode_inlined(inline, self.max_bytes)
        return blake3(data).hexdigest(), data

    async def _get_prepared(self, digest: str, data: bytes | None, transform: VideoTransform, budget: "_Budget") -> PreparedVideo:
        """Return the prepared video from the cache, or prepare it.

        `digest`: of the file. `data`: the file; None only if the cache has the video.
        """
        budget.spend(len(data or b""))
        key = _cache_key(digest, transform)
        if prepared := self.cache.get(key):
            metrics.VIDEOS.labels("cached").inc()
            return prepared
        assert data is not None
        metrics.VIDEOS.labels("shared" if key in self._preparing else "decoded").inc()
        with self._pending_files.hold(digest, len(data)), timed("decode"):
            return await self._preparing.do(key, lambda: self._prepare(key, data, transform))

    async def _prepare(self, key: str, data: bytes, transform: VideoTransform) -> PreparedVideo:
        import numpy as np  # here: a server without videos needs it later, and the command line not at all

        decoded = await self._workers.sample(data, transform, current_context().client)
        side = transform.video.side
        frames = np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.frames, side, side, 3)
        prepared = PreparedVideo(frames, key, decoded.size, decoded.seconds, transform.video.tokens(decoded.frames))
        self.cache.put(prepared, frames.nbytes)
        return prepared


class _Budget:
    """The limit on all videos of one request together."""

    def __init__(self, settings: Settings) -> None:
        self.megabytes = settings.max_request_video_mb
        self._bytes = self.megabytes << 20

    def spend(self, size: int) -> None:
        """Count a video's file. Raises InvalidVideo if the limit is exceeded. `size`: in bytes."""
        self._bytes -= size
        if self._bytes < 0:
            raise InvalidVideo(f"The videos of this request are larger than {self.megabytes} MiB together.", code="video_too_large")


def _cache_key(digest: str, transform: VideoTransform) -> str:
    """Return the key of a prepared video. `digest`: of the file."""
    return f"{digest}-{transform.name}"


def _as_video_error(error: InvalidImage, param: str) -> InvalidVideo:
    """Return an error of the fetch or of the base64, which videos share with images, as the error of a video."""
    code = (error.code or InvalidVideo.code).replace("image", "video")
    return InvalidVideo(error.message.replace("image", "video"), param=param, code=code)
