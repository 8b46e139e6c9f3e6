"""Videos made by PyAV, whose frames show their own numbers, and the plainest way to decode a video."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import av
import av.container
import numpy as np
from numpy.typing import NDArray

BITS = 10
"""The number of bars of a frame. Each is a bit of the frame's number, black or white."""
Frame = NDArray[np.uint8]


def numbered(number: int, size: tuple[int, int] = (160, 90)) -> Frame:
    """Return a frame that shows its number as bars, in a colour that changes from frame to frame. `size`: width and height."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 200 + 20
    row = np.repeat(bits, -(-size[0] // BITS))[: size[0]]
    frame = np.broadcast_to(row[None, :, None], (size[1], size[0], 3)).copy()
    frame[size[1] // 2 :, :, number % 3] //= 2
    return frame


def number_of(frame: Frame) -> int:
    """Return the number that a frame shows."""
    row = frame[: frame.shape[0] // 3].mean(axis=(0, 2))
    width = frame.shape[1] / BITS
    return sum(1 << bit for bit in range(BITS) if row[int((bit + 0.5) * width)] > 128)


def video(
    frames: Iterable[Frame] | int = 24,
    container: str = "mp4",
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (160, 90),
    pixel_format: str = "yuv420p",
    rate: int = 24,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    sound: str = "",
) -> bytes:
    """Return a video file.

    `frames`: or the number of frames that show their numbers. `size`: width and height of these. `options`: of the encoder. `muxer`:
    options of the container. `times`: of the frames, in units of one frame; by default they are evenly spaced. `sound`: the codec of
    a second of silence.
    """
    pictures = [numbered(number, size) for number in range(frames)] if isinstance(frames, int) else list(frames)
    with NamedTemporaryFile() as file, av.open(file.name, "w", format=container, options=muxer or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        silence = output.add_stream(sound, rate=48_000) if sound else None
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        for time, picture in zip(times or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if silence:
            encode_silence(output, silence)
        output.close()
        return Path(file.name).read_bytes()


def audio(container: str = "mp4", codec: str = "aac") -> bytes:
    """Return a file with a second of silence and no video."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        encode_silence(output, output.add_stream(codec, rate=48_000))
    return file.getvalue()


def encode_silence(output: av.container.OutputContainer, stream: Any) -> None:
    """Write a second of silence to an audio stream."""
    for number in range(48):
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 48_000, number * 1024
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def all_frames(data: bytes) -> list[Frame]:
    """Return every frame of a video, as a program that knows nothing but PyAV decodes it."""
    with av.open(io.BytesIO(data), "r") as container:
        return [pixels(frame) for frame in container.decode(video=0)]


def pixels(frame: av.VideoFrame) -> Frame:
    """Return the pixels of a frame in RGB, as Hugging Face's reader takes them."""
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
