"""The sampled frames are those of a program that decodes all frames, whatever the container and the codec, and cost less."""

import io
from collections.abc import Callable
from functools import cache, partial

import av
import numpy as np
import psutil
import pytest
from helpers.hostile_videos import change_box
from helpers.videos import Frame, all_frames, number_of, pixels, video
from transformers import LlavaNextVideoVideoProcessor, LlavaOnevisionVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from llava_gateway.settings import AspectRatio
from llava_gateway.videos.container import Limits, open_video, read_packets
from llava_gateway.videos.frames import ORIENTATIONS, VP8_SHOWN, FrameReader, orientation, sample_frames, sample_indices
from llava_gateway.videos.worker import VideoDecoder

pytestmark = pytest.mark.slow

LIMITS = Limits(50_000_000, 600)
B_FRAMES = {"bf": "3", "g": "12", "b_strategy": "0", "sc_threshold": "0"}
REPEATED = {"g": "40", "x264-params": "repeat-headers=1"}
"""Each keyframe has the parameters of the decoder, so that a part of the file can be decoded."""
VIDEOS: dict[str, Callable[[], bytes]] = {
    "MP4, H.264 with B-frames": partial(video, 50, options=B_FRAMES),
    "MP4, H.264 with open GOPs": partial(video, 50, options={"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    "MP4 in fragments": partial(video, 50, options=B_FRAMES, muxer={"movflags": "frag_keyframe+empty_moov"}),
    "MP4, its index first": partial(video, 50, options=B_FRAMES, muxer={"movflags": "faststart"}),
    "MP4 with an edit list": lambda: edited(),
    "MP4, one keyframe": partial(video, 50, options={"g": "1000", "bf": "2"}),
    "MP4, uneven times": partial(video, 50, options=B_FRAMES, times=np.cumsum(np.arange(50) % 7 + 1).tolist()),
    "MP4, HEVC": partial(video, 50, codec="libx265", options={"x265-params": "keyint=12:bframes=3:log-level=none"}),
    "MOV, MJPEG": partial(video, 20, "mov", "mjpeg", pixel_format="yuvj420p"),
    "WebM, VP8": partial(video, 50, "webm", "libvpx", options={"g": "20"}),
    "WebM, VP8 with hidden frames": lambda: with_hidden_frames(video(50, "webm", "libvpx", options={"g": "20"})),
    "WebM, VP9": partial(video, 50, "webm", "libvpx-vp9", options={"g": "20"}),
    "WebM, AV1": partial(video, 20, "webm", "libsvtav1", options={"g": "8", "preset": "12"}),
    "Matroska, FFV1": partial(video, 20, "matroska", "ffv1"),
    "AVI, MPEG-4 with B-frames": partial(video, 50, "avi", "mpeg4", options={"bf": "2", "g": "12"}),
    "AVI, H.264 with B-frames": partial(video, 50, "avi", options=B_FRAMES),
    "MPEG-TS, MPEG-2 with B-frames": partial(video, 50, "mpegts", "mpeg2video", options={"bf": "2", "g": "12"}),
    "MPEG-TS that begins between keyframes": lambda: second_half(
        video(60, "mpegts", options={"g": "40", "x264-params": "repeat-headers=1"})
    ),
    "MPEG-TS, H.264 with B-frames": partial(video, 50, "mpegts", options=B_FRAMES),
    "MP4 with sound": partial(video, 20, sound="aac"),
    "MPEG-TS with sound": partial(video, 20, "mpegts", sound="aac"),
    "GIF": partial(video, 12, "gif", "gif", pixel_format="rgb8", rate=10),
    "one frame": partial(video, 1),
}


def edited() -> bytes:
    """Return an MP4 whose edit list leaves out the first 17 frames, as phones do it to shorten a video."""
    return change_box(video(50, options=B_FRAMES), b"elst", lambda content: content[:12] + (1024 + 17 * 512).to_bytes(4) + content[16:])


def with_hidden_frames(data: bytes) -> bytes:
    """Return a WebM of VP8 with packets that change later frames, but are not shown. Encoders with two passes write such packets."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format="webm") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream = stream
            if number % 10 == 5:
                hidden = av.Packet(bytes([memoryview(packet)[0] & ~VP8_SHOWN]) + bytes(packet)[1:])
                hidden.stream, hidden.time_base = stream, packet.time_base
                hidden.pts = hidden.dts = (packet.pts or 0) - 10
                output.mux(hidden)
            output.mux(packet)
    return file.getvalue()


def second_half(data: bytes) -> bytes:
    """Return a transport stream from its middle on."""
    return data[len(data) // 2 // 188 * 188 :]


@cache
def made(name: str) -> bytes:
    return VIDEOS[name]()


def sampled(data: bytes, count: int) -> list[Frame]:
    with open_video(data, LIMITS) as opened:
        return [pixels(frame) for frame in sample_frames(opened, read_packets(opened, LIMITS), count)]


def test_indices_equal_those_of_transformers() -> None:
    for total in [*range(1, 100), 999, 1000, 17_999, 199_999]:
        for count in (1, 2, 7, 8, 31, 32, 64):
            expected = default_sample_indices_fn(VideoMetadata(total), num_frames=min(count, total)).tolist()
            assert sample_indices(total, count) == expected


@pytest.mark.parametrize("name", VIDEOS)
def test_sampled_frames_equal_those_of_a_whole_decoding(name: str) -> None:
    frames = all_frames(made(name))
    assert frames
    for count in (1, 2, 5, 8, 32, 60):
        expected = [frames[index] for index in sample_indices(len(frames), count)]
        found = sampled(made(name), count)
        assert [number_of(frame) for frame in found] == [number_of(frame) for frame in expected], count
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True)), count


def test_frames_between_keyframes_that_are_not_needed_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = video(400, options={"g": "10", "bf": "0", "sc_threshold": "0"}), 0
    advance = FrameReader._advance

    def count_and_advance(self: FrameReader) -> bool:
        nonlocal read
        read += 1
        return advance(self)

    monkeypatch.setattr(FrameReader, "_advance", count_and_advance)
    assert [number_of(frame) for frame in sampled(data, 8)] == [0, 50, 100, 150, 200, 250, 300, 350]
    assert read == 8


def test_neither_decoding_nor_conversion_starts_threads() -> None:
    """Each would take address space, and CPU time of other requests. libswscale starts one for each core by default."""
    process, decoder = psutil.Process(), VideoDecoder(-1, LIMITS.max_pixels, LIMITS.max_seconds)
    for name in ("MP4, H.264 with B-frames", "MP4, HEVC", "WebM, VP9", "WebM, AV1"):
        data, before = made(name), process.num_threads()
        with open_video(data, LIMITS) as opened:
            frames = list(sample_frames(opened, read_packets(opened, LIMITS), 8))
            assert all(decoder._render(frame, 64, "resize") for frame in frames)
            assert process.num_threads() == before, name


def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_next() -> None:
    with open_video(made("MP4, H.264 with B-frames"), LIMITS) as opened:
        packets = [packet for at, packet in enumerate(read_packets(opened, LIMITS)) if not 12 <= at < 24]
        frames = [number_of(pixels(frame)) for frame in sample_frames(opened, packets, 38)]
    assert frames == sorted(frames)
    assert len(frames) == 38


@pytest.mark.parametrize("exif", [1, *ORIENTATIONS.values()])
def test_a_display_matrix_turns_the_frames_as_players_do(exif: int) -> None:
    """FFmpeg writes such a matrix for a phone's video. The signs are those of `a`, `b`, `c` and `d`."""
    signs = {value: key for key, value in ORIENTATIONS.items()}.get(exif, (1, 0, 0, 1))
    data = with_matrix(video([corner((160, 90))] * 3), signs)
    with open_video(data, LIMITS) as opened:
        (frame,) = sample_frames(opened, read_packets(opened, LIMITS), 1)
        assert orientation(frame) == exif
        upright = np.asarray(VideoDecoder(-1, LIMITS.max_pixels, LIMITS.max_seconds)._render(frame, 64, "resize"))
    a, b, c, d = signs
    x, y = (a * -1 + c * -1), (b * -1 + d * -1)  # where the corner at the top left goes
    assert brightest(upright) == (x, y)


def corner(size: tuple[int, int]) -> Frame:
    """Return a black frame whose top left corner is white."""
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    frame[: size[1] // 3, : size[0] // 3] = 255
    return frame


def brightest(frame: Frame) -> tuple[int, int]:
    """Return the corner that is white: -1 or 1 across, and -1 or 1 down."""
    high, wide = frame.shape[0] // 4, frame.shape[1] // 4
    corners = {
        (-1, -1): frame[:high, :wide], (1, -1): frame[:high, -wide:], (-1, 1): frame[-high:, :wide], (1, 1): frame[-high:, -wide:],
    }  # fmt: skip
    return max(corners, key=lambda place: float(corners[place].mean()))


def with_matrix(data: bytes, signs: tuple[int, int, int, int]) -> bytes:
    """Return an MP4 with another matrix in the header of its track (`tkhd`)."""
    at = data.index(b"tkhd") + 4 + 40  # version, flags, times, id, duration, layer, volume
    a, b, c, d = signs
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:at] + b"".join(value.to_bytes(4, signed=True) for value in values) + data[at + 36 :]


SIZES = ((384, 384), (640, 360), (360, 640), (1280, 720), (177, 99), (64, 48), (500, 400))


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("aspect_ratio", ["resize", "crop"])
def test_frames_equal_those_of_the_models_processor(aspect_ratio: AspectRatio, count: int) -> None:
    """The processor gets all frames in their own size on one side, and the frames that a worker prepares on the other."""
    side = 384 if aspect_ratio == "resize" else 336
    processor = (
        LlavaOnevisionVideoProcessor()
        if aspect_ratio == "resize"
        else LlavaNextVideoVideoProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    )
    for size in SIZES:
        data = video([smooth(size, number) for number in range(10)], "matroska", "ffv1", pixel_format="bgr0")
        original = np.stack(all_frames(data))
        metadata = VideoMetadata(total_num_frames=10, fps=24.0)
        sampling = {"do_sample_frames": True, "num_frames": min(count, 10), "video_metadata": [metadata]}
        expected = processor([original], do_normalize=False, return_tensors="np", **sampling)["pixel_values_videos"][0] * 255
        with open_video(data, LIMITS) as opened:
            decoder = VideoDecoder(-1, LIMITS.max_pixels, LIMITS.max_seconds)
            frames = sample_frames(opened, read_packets(opened, LIMITS), count)
            prepared = np.stack([np.asarray(decoder._render(frame, side, aspect_ratio)) for frame in frames])
        assert prepared.shape == (min(count, 10), side, side, 3)
        planes = prepared.transpose(0, 3, 1, 2)
        assert np.abs(planes - expected).mean() < 0.5, size
        assert np.abs(planes - expected).max() <= 3, size
        again = processor([prepared], do_normalize=False, return_tensors="np")["pixel_values_videos"][0] * 255
        assert np.array_equal(np.round(again), planes), "the processor in the engine resizes the frames again"


def smooth(size: tuple[int, int], number: int) -> Frame:
    """Return a frame in which each part differs from all others, and from that part of other frames."""
    across, down = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    return np.stack([across + number, down, 200 - (across + down) / 2 + 2 * number], -1).astype(np.uint8)
