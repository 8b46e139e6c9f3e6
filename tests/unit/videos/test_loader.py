"""The videos of a request: each is decoded once, the limits of a request hold, and URLs pass the same checks as those of images."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import psutil
import pytest
from helpers.origin import Origin
from helpers.videos import number_of, video
from prometheus_client import REGISTRY

from llava_gateway.errors import InvalidVideo, TooManyRequests
from llava_gateway.images.loader import ImageLoader
from llava_gateway.images.worker_pool import Worker
from llava_gateway.model_info import VideoConfig
from llava_gateway.observability.context import RequestContext, request_context
from llava_gateway.settings import Settings
from llava_gateway.types import BodySlice, PreparedVideo, VideoUrl
from llava_gateway.videos.loader import VideoLoader

pytestmark = pytest.mark.slow

VIDEO = VideoConfig(96, "resize", lambda frames: 10 * frames + 1, max_frames=16)
BOUND = 120
"""Seconds. Nothing in this file takes so long, even on a busy machine."""
PATIENT = {"video_timeout": BOUND, "image_connect_timeout": BOUND, "image_read_timeout": BOUND}
"""Timeouts that do not expire on a busy machine."""
CLIP = video(24)


def run(work: Callable[[VideoLoader], Awaitable[None]], *, networks: tuple[str, ...] = ("127.0.0.0/8",), **settings: Any) -> None:
    async def main() -> None:
        values = Settings(allow_networks=tuple(map(ip_network, networks)), **PATIENT | settings)
        images = ImageLoader(values)
        loader = VideoLoader(values, images)
        try:
            await asyncio.wait_for(work(loader), 2 * BOUND)
        finally:
            await loader.close()
            await images.close()

    asyncio.run(main())


def data_uri(data: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def urls(*given: str) -> list[VideoUrl]:
    return [VideoUrl(url, f"video[{index}]") for index, url in enumerate(given)]


def count(source: str) -> float:
    return REGISTRY.get_sample_value("llava_videos_total", {"source": source}) or 0


def load(loader: VideoLoader, *given: str, client: str = "192.0.2.1") -> asyncio.Task[tuple[PreparedVideo, ...]]:
    """Load videos in the context of a request of `client`."""
    with request_context(RequestContext(address=client)):
        return asyncio.create_task(loader.load(urls(*given), VIDEO))


def numbers(prepared: PreparedVideo) -> list[int]:
    return [number_of(frame) for frame in prepared.frames]


def test_a_video_becomes_the_frames_that_the_model_sees() -> None:
    async def work(loader: VideoLoader) -> None:
        (prepared,) = await loader.load([VideoUrl(BodySlice(memoryview(data_uri(CLIP).encode())), "video")], VIDEO)
        assert prepared.frames.shape == (8, 96, 96, 3)
        assert numbers(prepared) == [0, 3, 6, 9, 12, 15, 18, 21]
        assert (prepared.source, prepared.seconds, prepared.tokens) == ((160, 90), 1.0, 81)

    run(work, video_frames=8)


def test_the_context_of_the_model_lowers_the_number_of_frames() -> None:
    async def work(loader: VideoLoader) -> None:
        (prepared,) = await load(loader, data_uri(CLIP))
        (short,) = await load(loader, data_uri(video(3)))
        assert (len(prepared.frames), len(short.frames)) == (16, 3)

    run(work, video_frames=32)


def test_a_video_is_not_decoded_twice(origin: Origin) -> None:
    """The video comes twice in a request, in concurrent and later requests, and as a URL. Another form is another video."""
    origin.files["/clip"] = CLIP

    async def work(loader: VideoLoader) -> None:
        decoded = count("decoded")
        first, *others = await asyncio.gather(*(load(loader, data_uri(CLIP), data_uri(CLIP, "video/webm")) for _ in range(3)))
        assert all(each is first[0] for videos in [first, *others] for each in videos)
        for _ in range(2):
            assert (await load(loader, f"{origin.url}/clip"))[0] is first[0]
        assert count("decoded") == decoded + 1
        assert sum(path == "/clip" for path, _ in origin.requests) == 1
        assert dict(origin.requests)["/clip"]["accept"] == "video/*"
        assert loader.cache.bytes == first[0].frames.nbytes
        (cropped,) = await loader.load(urls(data_uri(CLIP)), replace(VIDEO, aspect_ratio="crop"))
        (fewer,) = await loader.load(urls(data_uri(CLIP)), replace(VIDEO, max_frames=4))
        assert len({cropped.digest, fewer.digest, first[0].digest}) == 3

    run(work)


def test_a_shared_decode_is_cancelled_only_with_its_last_request() -> None:
    async def work(loader: VideoLoader) -> None:
        await load(loader, data_uri(video(2)))
        started, go_on, ask = asyncio.Event(), asyncio.Event(), Worker.ask
        asked: list[Worker] = []

        async def wait_and_ask(self: Worker, *arguments: Any) -> Any:
            asked.append(self)
            started.set()
            await go_on.wait()
            return await ask(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Worker, "ask", wait_and_ask)
            first, shared = load(loader, data_uri(CLIP)), count("shared")
            await started.wait()
            second = load(loader, data_uri(CLIP), client="192.0.2.2")
            while count("shared") == shared:  # noqa: ASYNC110 # there is no event for this
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            go_on.set()
            assert len((await second)[0].frames) == 16
            go_on.clear()
            third = load(loader, data_uri(video(5)))
            while len(asked) < 2:  # noqa: ASYNC110 # there is no event for this
                await asyncio.sleep(0.01)
            third.cancel()
            await asyncio.gather(third, return_exceptions=True)
            await asyncio.wait_for(asked[-1].process.wait(), BOUND)
            assert not psutil.pid_exists(asked[-1].process.pid)

    run(work)


REFUSED = (
    ("http://127.0.0.1:1/clip", "invalid_video_url"),
    ("http://10.0.0.1/clip.mp4", "invalid_video_url"),
    ("http://[::ffff:10.0.0.1]/", "invalid_video_url"),
    ("file:///etc/passwd", "invalid_video_url"),
    ("/etc/passwd", "invalid_video_url"),
    ("rtsp://example.com/stream", "invalid_video_url"),
    ("data:video/mp4;base64,???", "invalid_base64_video"),
    ("data:video/mp4,hello", "invalid_base64_video"),
    ("data:video/mp4;base64,", "empty_video_file"),
    (data_uri(b"hello, world"), "invalid_video_format"),
)


def test_wrong_urls_are_refused_by_name() -> None:
    async def work(loader: VideoLoader) -> None:
        for url, code in REFUSED:
            with pytest.raises(InvalidVideo) as refusal:
                await load(loader, data_uri(CLIP), url)
            assert (refusal.value.code, refusal.value.param, refusal.value.status) == (code, "video[1]", 400), url
            assert "image" not in refusal.value.message

    run(work, networks=())


def test_the_fetch_of_a_video_is_limited(origin: Origin) -> None:
    origin.files["/large"] = bytes(1 << 20) + b"x"

    async def work(loader: VideoLoader) -> None:
        for path, code in (
            ("/large", "video_too_large"), ("/lies", "video_too_large"), ("/endless", "video_too_large"),
            ("/loop", "failed_to_download_video"), ("/missing", "failed_to_download_video"), ("/to-private", "invalid_video_url"),
            ("/text", "invalid_video_format"), ("/picture", "invalid_video_format"),
        ):  # fmt: skip
            with pytest.raises(InvalidVideo) as refusal:
                await load(loader, origin.url + path)
            assert refusal.value.code == code, path
        with pytest.raises(InvalidVideo, match="larger than 1 MiB"):
            await load(loader, data_uri(bytes(1 << 20) + b"x"))

    run(work, max_video_mb=1)


def test_a_slow_origin_does_not_hold_its_request(origin: Origin) -> None:
    async def work(loader: VideoLoader) -> None:
        with pytest.raises(InvalidVideo, match=r"The video URL took longer than 0\.5 s"):
            await load(loader, origin.url + "/drip")

    run(work, video_timeout=0.5)


def test_the_videos_of_a_request_are_limited() -> None:
    async def work(loader: VideoLoader) -> None:
        large = [data_uri(CLIP + bytes([number]) * 600_000) for number in range(2)]
        assert await load(loader, large[0], data_uri(CLIP))
        with pytest.raises(InvalidVideo, match="larger than 1 MiB together") as refusal:
            await load(loader, *large)
        assert refusal.value.code == "video_too_large"
        with pytest.raises(InvalidVideo, match="at most 2 videos") as refusal:
            await load(loader, *[data_uri(CLIP)] * 3)
        assert refusal.value.param == "video[2]"

    run(work, max_request_video_mb=1, max_request_videos=2)


def test_the_bytes_of_waiting_files_are_limited() -> None:
    async def work(loader: VideoLoader) -> None:
        with pytest.raises(TooManyRequests, match="Too many images or videos wait"):
            await load(loader, data_uri(CLIP + bytes(1 << 20)))
        assert await load(loader, data_uri(CLIP))

    run(work, max_bodies_mb=1)
