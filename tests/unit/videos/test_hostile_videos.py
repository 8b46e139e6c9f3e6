"""Hostile and damaged videos: each is refused by name, costs little, and does not harm the next video."""

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from helpers import hostile_videos as hostile
from helpers.videos import number_of, video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.errors import InvalidVideo
from llava_gateway.images import worker_pool
from llava_gateway.model_info import VideoConfig
from llava_gateway.settings import Settings
from llava_gateway.videos import video_workers
from llava_gateway.videos.video_workers import DecodedVideo, VideoTransform, VideoWorkers

pytestmark = pytest.mark.slow

TRANSFORM = VideoTransform(VideoConfig(64, "resize", lambda frames: frames, 8), 8)
BOUND = 120
"""Seconds. Nothing in this file takes so long, even on a busy machine."""


def run(work: Callable[[VideoWorkers], Awaitable[None]], **values: float) -> None:
    async def main() -> None:
        pool = VideoWorkers(Settings(**values))  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(work(pool), 2 * BOUND)
        finally:
            await pool.close()

    asyncio.run(main())


async def sample(pool: VideoWorkers, data: bytes) -> DecodedVideo:
    return await pool.sample(data, TRANSFORM, "192.0.2.1")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_hostile_files_are_refused_and_cost_little() -> None:
    """One pool decodes all of them, so that a worker that survives a file decodes the next one."""
    files = {name: (make(), code) for name, (make, code) in hostile.REFUSED.items()}
    before = cpu_seconds()

    async def work(pool: VideoWorkers) -> None:
        good = await sample(pool, video(16))
        for name, (data, code) in files.items():
            with pytest.raises(InvalidVideo) as refusal:
                await sample(pool, data)
            assert refusal.value.code == code, (name, refusal.value.message)
            assert "/" not in refusal.value.message, name
        assert await sample(pool, video(16)) == good

    run(work)
    assert cpu_seconds() - before < 15


@pytest.mark.parametrize("declared", [0, 1, 2**32 - 1])
def test_a_header_that_lies_about_the_length_changes_nothing(declared: int) -> None:
    async def work(pool: VideoWorkers) -> None:
        decoded = await sample(pool, hostile.declared_duration(declared))
        assert (decoded.frames, decoded.seconds) == (8, 1.0)

    run(work)


def test_frames_in_another_file_are_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.mov"
    outside.write_bytes(video(8, "mov"))

    async def work(pool: VideoWorkers) -> None:
        with pytest.raises(InvalidVideo):
            await sample(pool, hostile.external_reference(str(outside)))

    run(work)


def test_the_pixels_of_a_frame_and_the_length_of_a_video_are_limited() -> None:
    async def work(pool: VideoWorkers) -> None:
        assert (await sample(pool, video(2, times=[0, 47]))).seconds == 2
        for refused in (video(2, times=[0, 48]), video(2, size=(1280, 800)), video(60, "avi")):
            with pytest.raises(InvalidVideo) as refusal:
                await sample(pool, refused)
            assert refusal.value.code == "video_too_large"

        with pytest.raises(InvalidVideo, match=r"2560 x 16 pixels; the longest side"):  # the first frames have the usual size
            await sample(pool, video(8, "mpegts") + video(8, "mpegts", size=(2560, 16)))

    run(work, max_video_seconds=2, max_image_megapixels=1)


def test_an_idle_worker_holds_no_frames() -> None:
    """A container and its decoder are a cycle of references."""

    async def work(pool: VideoWorkers) -> None:
        small, large = video(10), video(4, size=(3840, 2160), options={"preset": "ultrafast"})
        await sample(pool, small)
        (process,) = [psutil.Process((await task).process.pid) for task in pool._idle[-1:]]
        before = process.memory_info().rss
        for _ in range(2):
            await sample(pool, large)
        assert process.memory_info().rss - before < 80 << 20

    run(work)


def test_a_video_that_takes_too_much_cpu_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "WALL_TIME", BOUND)  # only CPU time ends a video, however busy the machine is
    slow = hostile.slow()

    async def work(pool: VideoWorkers) -> None:
        with pytest.raises(InvalidVideo, match=r"takes more than 0\.4 seconds to decode; send a shorter"):
            await sample(pool, slow)
        assert (await sample(pool, video(2))).frames == 2

    run(work, video_cpu_seconds=0.4)


def test_a_video_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_workers, "BYTES_PER_PIXEL", 1)
    monkeypatch.setattr(video_workers, "BASE_MEMORY", 300 << 20)

    async def work(pool: VideoWorkers) -> None:
        with pytest.raises(InvalidVideo, match="takes too much memory"):
            await sample(pool, video(2, size=(7680, 4320), options={"preset": "ultrafast"}))
        assert (await sample(pool, video(2))).frames == 2

    run(work, max_video_mb=1)


def test_a_part_of_a_live_recording_is_decoded() -> None:
    """Such a file has no end, and may begin between keyframes; players show what is there."""

    async def work(pool: VideoWorkers) -> None:
        for container, codec in (("mpegts", "libx264"), ("matroska", "libx264")):
            whole = video(48, container, codec, options={"g": "8", "x264-params": "repeat-headers=1"})
            parts = [hostile.cut(whole)] if container == "matroska" else [hostile.cut(whole), whole[len(whole) // 3 // 188 * 188 :]]
            for part in parts:
                decoded = await sample(pool, part)
                assert decoded.frames == 8
                frames = [bytes(decoded.pixels[at : at + 64 * 64 * 3]) for at in range(0, len(decoded.pixels), 64 * 64 * 3)]
                assert len(set(frames)) == 8

    run(work)


GOOD = {
    "mp4": video(12, options={"bf": "2", "g": "4"}),
    "webm": video(12, "webm", "libvpx"),
    "avi": video(12, "avi", "mpeg4"),
    "mpegts": video(12, "mpegts", "mpeg2video"),
    "gif": video(6, "gif", "gif", pixel_format="rgb8"),
}

FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=12)
"""Bits to change: the place of their byte in the file, from 0 to 1, and their place in it."""


def test_damaged_files_and_random_bytes_end_in_frames_or_a_refusal() -> None:
    examples: list[bytes] = []

    @settings(max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(sorted(GOOD)),
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=12),
        st.binary(max_size=64),
        st.booleans(),
    )
    def collect(name: str, flips: list[tuple[float, int]], tail: bytes, keep: bool) -> None:
        data = bytearray(GOOD[name])
        for place, bit in flips:
            data[int(place * (len(data) - 1))] ^= 1 << bit
        examples.append(bytes(data) if keep else bytes(data[:64]) + tail * 50)

    collect()

    async def work(pool: VideoWorkers) -> None:
        for data in examples:
            try:
                decoded = await sample(pool, data)
            except InvalidVideo as error:
                assert error.message
            else:
                assert 1 <= decoded.frames <= 8
                assert len(decoded.pixels) == decoded.frames * 64 * 64 * 3

    run(work)


def test_numbers_of_the_frames_can_be_read() -> None:
    """The other tests of this folder rely on it."""
    from helpers.videos import all_frames

    assert [number_of(frame) for frame in all_frames(video(20))] == list(range(20))
