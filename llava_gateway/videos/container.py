"""Opens a video file with FFmpeg, and reads the packets of its video stream.

Only worker processes import this file and PyAV (`av`). The demuxer is chosen by the file's first bytes, never by FFmpeg's guess: a playlist
or a list of files is no video, and no demuxer opens a second file or a URL.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from llava_gateway.errors import InvalidVideo
from llava_gateway.images.decode import MAX_ASPECT, sniff

FORMATS = "MP4, MOV, WebM, Matroska, AVI, MPEG-TS, GIF"
"""The accepted containers, for messages."""
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
"""The boxes that a file in MP4 or QuickTime begins with."""
CODECS = (
    *("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "h263", "mpeg4", "mpeg2video", "mpeg1video"),
    *("mjpeg", "prores", "ffv1", "gif"),
)
"""The names of FFmpeg's decoders that may run. The others are rare, and each is code that a hostile file would reach."""
TS_PACKETS = ((188, 0), (192, 4))
"""The length of a packet of a transport stream, and the place of its sync byte: usual streams, and those of Blu-ray."""
VideoPacket: TypeAlias = "Packet[VideoStream]"
MAX_STREAMS = 32
MAX_PACKETS = 200_000
"""The greatest number of frames of a video: 55 minutes at 60 frames per second."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a video."""

    max_pixels: int
    """Of a frame."""
    max_seconds: int


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """An open video file, and its first video stream."""

    container: InputContainer
    stream: VideoStream

    @property
    def is_mp4(self) -> bool:
        """Whether the file is an MP4, or a MOV."""
        return self.container.format.name.startswith("mov")

    @property
    def is_avi(self) -> bool:
        """Whether the file is an AVI."""
        return self.container.format.name == "avi"


@contextmanager
def open_video(data: bytes, limits: Limits) -> Iterator[OpenVideo]:
    """Open the file. Raises InvalidVideo for any error of FFmpeg within the block, and MemoryError."""
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=_detect_format(data),
            options={"max_streams": str(4 * MAX_STREAMS), "codec_whitelist": ",".join(CODECS), "protocol_whitelist": "none"},
            metadata_errors="ignore",
            io_open=_refuse_to_open,
        ) as container:
            yield OpenVideo(container, _video_stream(container, limits))
    except (InvalidVideo, MemoryError, RecursionError):
        raise
    except Exception as error:  # FFmpeg may fail on a damaged file with any class of error
        raise InvalidVideo("The video is damaged or cut short.") from error


def read_packets(video: OpenVideo, limits: Limits) -> list[VideoPacket]:
    """Return the packets of the video in the order of the file, from the first keyframe on.

    The number of packets and their times count, not the numbers in the file's header. Raises InvalidVideo if the video is too long.
    """
    packets: list[VideoPacket] = []
    longest = limits.max_seconds / video.stream.time_base if video.stream.time_base else math.inf
    first: int | None = None
    read = 0
    for read, packet in enumerate(video.container.demux(video.stream)):  # noqa: B007 # the last packet is empty: it means the end
        if not packet.size:
            continue
        time = packet.dts if packet.dts is not None else packet.pts
        first = time if first is None else first
        if time is not None and first is not None and time - first > longest:
            raise too_long(limits)
        packets.append(packet)
        if len(packets) > MAX_PACKETS:
            raise InvalidVideo(f"The video has more than {MAX_PACKETS} frames; send a part of it.", code="video_too_large")
    if video.is_mp4 and read < sum(1 for entry in video.stream.index_entries if entry.size):
        raise InvalidVideo("The video is damaged or cut short.")  # the index lists more frames than there are
    start = next((index for index, packet in enumerate(packets) if packet.is_keyframe), 0)
    return packets[start:]


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raise InvalidVideo if a frame of this width and height has too many pixels, or is too thin."""
    width, height = size
    if width * height > limits.max_pixels:
        megapixels = limits.max_pixels // 1_000_000
        raise InvalidVideo(
            f"The video has frames of {width} x {height} pixels; at most {megapixels} million are allowed.", code="video_too_large"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise InvalidVideo(
            f"The video has frames of {width} x {height} pixels; the longest side may be at most {MAX_ASPECT} times the shortest."
        )


def too_long(limits: Limits) -> InvalidVideo:
    """Return the error for a video over the limit of its length."""
    return InvalidVideo(f"The video is longer than {limits.max_seconds} seconds; send a part of it.", code="video_too_large")


def _detect_format(data: bytes) -> str:
    """Return the name of the demuxer. Raises InvalidVideo if the file is empty or no accepted video."""
    if not data:
        raise InvalidVideo("The video file is empty.", code="empty_video_file")
    if data[4:8] in ISO_BOXES and sniff(data) is None:  # AVIF and HEIC are images in the same container
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if any(data[at : at + 2 * length + 1 : length] == b"GGG" for length, at in TS_PACKETS):
        return "mpegts"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    raise InvalidVideo(f"The video must be one of {FORMATS}.", code="invalid_video_format")


def _video_stream(container: InputContainer, limits: Limits) -> VideoStream:
    """Return the first stream that is a video and no cover picture. Raises InvalidVideo."""
    if len(container.streams) > MAX_STREAMS:
        raise InvalidVideo(f"The video has more than {MAX_STREAMS} streams; send it with one video stream.")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise InvalidVideo("The file has no video stream; it may be audio only.")
    stream = streams[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        raise InvalidVideo(
            "The codec of the video is not supported, or the file is damaged; send it as MP4 with H.264.",
            code="unsupported_video_media_type",
        )
    check_size((max(context.width, 1), max(context.height, 1)), limits)
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}  # a frame in the stream may be larger than its header says
    return stream


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> None:
    raise FileNotFoundError("a video consists of one file")
