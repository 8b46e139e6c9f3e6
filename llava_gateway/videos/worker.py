"""A worker process, which decodes videos: from a file to the frames that the model sees, each resized and in RGB."""

import gc
import os
from collections.abc import Sequence
from typing import Any

from av.video.frame import VideoFrame
from PIL import Image

from llava_gateway.errors import InvalidImage, InvalidVideo
from llava_gateway.images.decode import Target, render
from llava_gateway.images.worker_process import run
from llava_gateway.videos.container import Limits, OpenVideo, VideoPacket, check_size, open_video, read_packets, too_long
from llava_gateway.videos.frames import orientation, sample_frames


class VideoDecoder:
    """Decodes one video at a time.

    A target has the greatest number of `frames`, the `side` of a frame in pixels, and its `aspect_ratio`. A response has the number of
    `frames`, the `size` of the original ones in pixels, and the length in `seconds`.
    """

    def __init__(self, shared: int, max_pixels: int, max_seconds: int) -> None:
        self._shared = shared
        self._limits = Limits(max_pixels, max_seconds)

    def handle(self, length: int | None, target: dict[str, Any] | None) -> dict[str, Any]:
        """Return a response for one file, as `worker_process.Decoder` describes it."""
        assert length is not None
        assert target is not None
        try:
            with open_video(os.pread(self._shared, length, 0), self._limits) as video:
                return self._decode(video, **target)
        except (InvalidVideo, InvalidImage) as error:
            return {"error": error.message, "code": error.code}
        except (MemoryError, RecursionError):
            message = "The video takes too much memory to decode; send it with smaller frames, or as MP4 with H.264."
            return {"error": message, "code": InvalidVideo.code}
        finally:
            gc.collect()  # a container, its streams and its decoders refer to each other, and hold many frames

    def _decode(self, video: OpenVideo, frames: int, side: int, aspect_ratio: Any) -> dict[str, Any]:
        """Write the frames to the shared memory."""
        packets = read_packets(video, self._limits)
        seconds = _seconds(video, packets)
        if seconds > self._limits.max_seconds:
            raise too_long(self._limits)
        size, count, length = (0, 0), 0, 0
        for count, frame in enumerate(sample_frames(video, packets, frames), 1):
            size = (frame.width, frame.height) if count == 1 else size
            length += os.pwrite(self._shared, self._render(frame, side, aspect_ratio).tobytes(), length)
        if not count:
            raise InvalidVideo("The video has no frames.")
        return {"frames": count, "size": size, "seconds": seconds, "length": length}

    def _render(self, frame: VideoFrame, side: int, aspect_ratio: Any) -> Image.Image:
        """Return a frame upright, as the model sees it."""
        check_size((frame.width, frame.height), self._limits)
        image = frame.to_image(threads=1)  # type: ignore[no-untyped-call]  # by libswscale, as `to_ndarray` does it
        image.info["orientation"] = orientation(frame)
        sizes = dict.fromkeys(((image.width, image.height), (image.height, image.width)), (side, side))
        return render(image, Target(sizes, aspect_ratio, (0, 0, 0)))


def _seconds(video: OpenVideo, packets: Sequence[VideoPacket]) -> float:
    """Return the length of the video by its packets, in seconds."""
    times = [(packet.pts, packet.pts + (packet.duration or 0)) for packet in packets if packet.pts is not None and not packet.is_discard]
    if times and video.stream.time_base:
        return float((max(end for _, end in times) - min(start for start, _ in times)) * video.stream.time_base)
    return float(len(packets) / video.stream.average_rate) if video.stream.average_rate else 0.0


if __name__ == "__main__":
    run(VideoDecoder)
