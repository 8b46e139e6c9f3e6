"""Video files that are built to do harm: to cost far more than their size suggests, or to read other files."""

import io
import struct
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from helpers.videos import audio, encode_silence, video
from PIL import Image

from llava_gateway.demo.images import encode

PARENTS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"dinf", b"stbl")
"""The boxes of an MP4 that hold other boxes only."""


def change_box(data: bytes, name: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return an MP4 in which the content of each box `name` is replaced. The lengths of the boxes around it are corrected."""
    boxes, at = b"", 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + length]
        if kind == name:
            content = change(content)
        elif kind in PARENTS:
            content = change_box(content, name, change)
        boxes += struct.pack(">I4s", len(content) + 8, kind) + content
        at += length
    return boxes


def external_reference(path: str) -> bytes:
    """Return a MOV whose frames are in another file, `path` (an alias as QuickTime writes it)."""
    name = path.rsplit("/", 1)[-1].encode()
    head = bytes(10) + bytes([1]) + b"d".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    level = struct.pack(">hh", 1, 1) + bytes(16)
    absolute = "d" + path.replace("/", ":")
    full = struct.pack(">hH", 2, len(absolute)) + absolute.encode() + bytes(len(absolute) % 2) + struct.pack(">hH", -1, 0)
    alias = head + level + full + bytes(100)
    entry = struct.pack(">I4sI", len(alias) + 12, b"alis", 0) + alias
    return change_box(video(8, "mov"), b"dref", lambda _: struct.pack(">II", 0, 1) + entry)


def many_samples(count: int) -> bytes:
    """Return a short MP4 whose index declares `count` frames of one byte."""
    data = change_box(video(8), b"stsz", lambda _: struct.pack(">III", 0, 1, count))
    return change_box(data, b"stsc", lambda _: struct.pack(">IIIII", 0, 1, 1, count, 1))


def many_entries(name: bytes) -> bytes:
    """Return an MP4 whose table `name` declares four billion entries."""
    return change_box(video(8), name, lambda content: content[:4] + b"\xff" * 4 + content[8:])


def declared_duration(duration: int) -> bytes:
    """Return an MP4 whose headers declare a duration, in units of the movie and of its track."""
    patched = duration.to_bytes(4)
    data = change_box(video(24), b"mvhd", lambda content: content[:16] + patched + content[20:])
    return change_box(data, b"mdhd", lambda content: content[:16] + patched + content[20:])


def many_streams(count: int, container: str = "matroska") -> bytes:
    """Return a file with `count` video streams of one frame each."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams: list[Any] = [output.add_stream("mjpeg", rate=1) for _ in range(count)]
        for stream in streams:
            stream.width = stream.height = 16
            stream.pix_fmt = "yuvj420p"
        for stream in streams:
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuvj420p")))
    return file.getvalue()


def slow(count: int = 400) -> bytes:
    """Return an AVI with one large picture `count` times. An AVI has no times of presentation, so all of them are decoded."""
    picture = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream: Any = output.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        (packet,) = stream.encode(frame) or stream.encode(None)
        for number in range(count):
            packet.pts = packet.dts = number
            output.mux(packet)
    return file.getvalue()


def audio_with_cover() -> bytes:
    """Return an MP4 of silence with a cover picture, which FFmpeg lists among the video streams."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound: Any = output.add_stream("aac", rate=48_000)
        cover: Any = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        encode_silence(output, sound)
    return file.getvalue()


def no_frames() -> bytes:
    """Return a file that declares a video stream and has no frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        output.start_encoding()
    return file.getvalue()


def huge_frames(width: int = 65_000, height: int = 65_000) -> bytes:
    """Return a GIF of a few bytes whose frame has billions of pixels."""
    gif = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    at = gif.index(b"\x2c", 13)
    gif[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(gif)


def huge_jpegs(width: int = 65_000, height: int = 65_000) -> bytes:
    """Return a Matroska file of MJPEG whose header says 16 x 16 pixels, and whose frames say billions."""
    data = bytearray(video(4, "matroska", "mjpeg", pixel_format="yuvj420p"))
    at = data.find(b"\xff\xc0")
    while at >= 0:
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
        at = data.find(b"\xff\xc0", at + 1)
    return bytes(data)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
DASH = b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>file:///etc/passwd</BaseURL></MPD>'
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty_video_file"),
    "text": (lambda: b"hello, world", "invalid_video_format"),
    "PNG": (lambda: encode(Image.new("RGB", (8, 8))), "invalid_video_format"),
    "AVIF": (lambda: encode(Image.new("RGB", (8, 8)), "AVIF"), "invalid_video_format"),
    "SVG": (lambda: SVG, "invalid_video_format"),
    "HLS playlist": (lambda: PLAYLIST, "invalid_video_format"),
    "list of files": (lambda: CONCAT, "invalid_video_format"),
    "DASH": (lambda: DASH, "invalid_video_format"),
    "SDP": (lambda: SDP, "invalid_video_format"),
    "audio only": (audio, "invalid_video"),
    "audio only, WebM": (lambda: audio("webm", "libopus"), "invalid_video"),
    "audio with a cover": (audio_with_cover, "invalid_video"),
    "no frames": (no_frames, "invalid_video"),
    "its index cut off": (lambda: video(24)[:-500], "unsupported_video_media_type"),
    "its frames cut off": (lambda: cut(video(48, muxer={"movflags": "faststart"})), "invalid_video"),
    "no sample data": (lambda: change_box(video(8), b"stco", lambda content: content[:8] + b"\x7f\xff\xff\xff"), "invalid_video"),
    "huge GIF": (huge_frames, "invalid_video"),
    "huge JPEGs": (huge_jpegs, "invalid_video"),
    "thin": (lambda: huge_frames(60_000, 8), "invalid_video"),
    "thousand streams": (lambda: many_streams(1000), "invalid_video"),
    "thousand streams, AVI": (lambda: many_streams(60, "avi"), "invalid_video"),
    "a million frames": (lambda: many_samples(1_000_000), "invalid_video"),
    "billions of frames": (lambda: many_samples(2**31 - 1), "invalid_video"),
    "billions of times": (lambda: many_entries(b"stts"), "invalid_video"),
    "two frames an hour apart": (lambda: video(2, times=[0, 24 * 3600]), "video_too_large"),
    "an unusual codec": (lambda: video(4, "avi", "huffyuv", pixel_format="yuv422p"), "unsupported_video_media_type"),
}
"""Files that must be refused, and the code of the error."""


def cut(data: bytes) -> bytes:
    """Return the first two thirds of a file."""
    return data[: len(data) * 2 // 3]
