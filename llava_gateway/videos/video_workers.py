"""The pool of worker processes that decode videos, and the form in which they return them."""

from dataclasses import dataclass
from typing import Any

from llava_gateway.errors import InvalidVideo
from llava_gateway.images.worker_pool import WorkerConfig, WorkerPool
from llava_gateway.model_info import VideoConfig
from llava_gateway.observability import metrics
from llava_gateway.settings import Settings

BASE_MEMORY = 512 << 20
"""The address space of a worker without a video, in bytes: FFmpeg's libraries, the interpreter, and a reserve."""
BYTES_PER_PIXEL = 24
"""The address space for the decoding of the largest frames. A decoder of H.264 holds 17 frames of 1.5 bytes per pixel at most, and fewer
of large frames."""


@dataclass(frozen=True, slots=True)
class VideoTransform:
    """How videos are prepared for one model."""

    video: VideoConfig
    frames: int
    """The number of frames; a shorter video gives fewer."""

    @property
    def name(self) -> str:
        """A name for cache keys. The number in it must be increased when the results of the decoding change."""
        return f"video1-{self.frames}-{self.video.digest}"

    @property
    def target(self) -> dict[str, Any]:
        """The wanted form for a worker process."""
        return {"frames": self.frames, "side": self.video.side, "aspect_ratio": self.video.aspect_ratio}


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """The result of a worker."""

    pixels: bytearray
    """RGB: frames x side x side x 3."""
    frames: int
    size: tuple[int, int]
    """The width and height of the original frames, in pixels."""
    seconds: float


class VideoWorkers(WorkerPool):
    """Decodes videos in worker processes. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        max_pixels = settings.max_image_megapixels * 1_000_000
        super().__init__(
            WorkerConfig(
                noun="video",
                error=InvalidVideo,
                advice="send a shorter one, or smaller frames",
                module="llava_gateway.videos.worker",
                max_workers=2 * settings.image_threads,
                memory=BASE_MEMORY + 3 * (settings.max_video_mb << 20) + BYTES_PER_PIXEL * max_pixels,
                cpu_seconds=settings.video_cpu_seconds,
                limits=(max_pixels, settings.max_video_seconds),
                ends=metrics.VIDEO_WORKER_ENDS,
            )
        )

    async def sample(self, data: bytes, transform: VideoTransform, client: str) -> DecodedVideo:
        """Return the frames of a video file. Raises InvalidVideo and Unavailable."""
        response, pixels = await self.decode(data, transform.target, client)
        width, height = response["size"]
        return DecodedVideo(pixels, response["frames"], (width, height), response["seconds"])
