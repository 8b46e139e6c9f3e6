"""Samples the frames of a video as Hugging Face's video processors do, and decodes as little as that needs.

The chosen frames are those of a program that decodes all frames and then selects some by their index. To know the number of frames, all
packets are read, which is cheap. Their times of presentation tell which packet becomes which frame. Decoding starts at the last keyframe
before a chosen frame, and other packets are left out. Where a file has no such times, all frames are decoded and counted.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from llava_gateway.errors import InvalidVideo
from llava_gateway.images.metadata import UPRIGHT
from llava_gateway.videos.container import OpenVideo, VideoPacket

ORIENTATIONS = {
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""The EXIF orientation, by the signs of a display matrix: those of a, b, c and d in ISO/IEC 14496-12, section 8.2.2."""
VP8_SHOWN = 0x10
"""The bit in the first byte of a VP8 packet that says whether its frame is shown (RFC 6386, section 9.1)."""


def sample_indices(total: int, count: int) -> list[int]:
    """Return the indices of `count` of `total` frames, as transformers' `default_sample_indices_fn` does; all of a shorter video."""
    count = min(total, count)
    return [number * total // count for number in range(count)]


def sample_frames(video: OpenVideo, packets: Sequence[VideoPacket], count: int) -> Iterator[VideoFrame]:
    """Yield up to `count` frames, spread over the video, in order. `packets`: from `read_packets`.

    Raises InvalidVideo if the frames cannot be decoded.
    """
    context = video.stream.codec_context
    track = Track(context.name, packets, has_times=not video.is_avi)
    if track.times:
        yield from _select(FrameReader(context, track), sample_indices(len(track.shown), count))
    else:
        total = sum(1 for _ in FrameReader(context, track).all())
        yield from _select(FrameReader(context, track), sample_indices(total, count))


def orientation(frame: VideoFrame) -> int:
    """Return the EXIF orientation that the frame's display matrix means. Players turn a frame by this matrix."""
    side_data: Any = frame.side_data  # its type in PyAV's stubs is wrong
    if "DISPLAYMATRIX" not in side_data:
        return UPRIGHT
    a, b, _, c, d, *_ = (_sign(value) for value in memoryview(bytes(side_data["DISPLAYMATRIX"])).cast("i"))
    return ORIENTATIONS.get((a, b, c, d), UPRIGHT)


class Track:
    """The packets of a video stream, and the frames that they become."""

    def __init__(self, codec: str, packets: Sequence[VideoPacket], has_times: bool) -> None:
        """`has_times`: whether the container stores times of presentation. FFmpeg makes up those of an AVI."""
        self.packets = packets
        self.shown = [at for at, packet in enumerate(packets) if _is_shown(codec, packet)]
        """The positions of the packets that become frames."""
        times = [packets[at].pts for at in self.shown]
        known = {time for time in times if time is not None}
        self.times = sorted(known) if has_times and len(known) == len(times) else []
        """The times of presentation of all frames. Empty if the file does not have them all, or if two frames have the same."""
        self._keys = [at for at, packet in enumerate(packets) if packet.is_keyframe]
        self._positions = {packets[at].pts: at for at in self.shown}

    def start(self, index: int) -> int:
        """Return the position of the packet at which decoding must start to get the frame `index`."""
        if not self.times:
            return 0
        time = self.times[index]
        before = self._keys[: bisect_right(self._keys, self._positions[time])]
        return next((at for at in reversed(before) if (key := self.packets[at].pts) is not None and key <= time), 0)

    def index(self, frame: VideoFrame, previous: int) -> int:
        """Return the index of a decoded frame. `previous`: the index of the frame before it, or -1."""
        at = bisect_right(self.times, frame.pts) - 1 if self.times and frame.pts is not None else -1
        return at if at >= 0 and self.times[at] == frame.pts else previous + 1


class FrameReader:
    """Decodes the frames of a track in order."""

    def __init__(self, context: VideoCodecContext, track: Track) -> None:
        self._context = context
        self._track = track
        self._decoded: deque[VideoFrame] = deque()
        self._next = 0
        self._index = -1
        self._frame: VideoFrame | None = None
        context.flush_buffers()

    def read(self, index: int) -> VideoFrame | None:
        """Return the frame `index`, or the next one that can be decoded; after the end the last one. Indices must not decrease."""
        start = self._track.start(index)
        if start > self._next:
            self._context.flush_buffers()
            self._decoded.clear()
            self._next = start
        while self._index < index and self._advance():
            pass
        return self._frame

    def all(self) -> Iterator[VideoFrame]:
        """Yield all frames."""
        while self._advance():
            assert self._frame
            yield self._frame

    def _advance(self) -> bool:
        """Decode until there is a next frame. Return False at the end of the track."""
        packets = self._track.packets
        while not self._decoded and self._next <= len(packets):
            self._decoded.extend(self._context.decode(packets[self._next] if self._next < len(packets) else None))
            self._next += 1
        if not self._decoded:
            return False
        self._frame = self._decoded.popleft()
        self._index = self._track.index(self._frame, self._index)
        return True


def _select(reader: FrameReader, indices: Sequence[int]) -> Iterator[VideoFrame]:
    for index in indices:
        frame = reader.read(index)
        if frame is None:
            raise InvalidVideo("The video is damaged or cut short.")
        yield frame


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _is_shown(codec: str, packet: VideoPacket) -> bool:
    """Return whether a packet becomes a frame. An edit list may leave packets out, and VP8 has packets that only other frames refer to."""
    return not packet.is_discard and (codec != "vp8" or bool(memoryview(packet)[0] & VP8_SHOWN))
