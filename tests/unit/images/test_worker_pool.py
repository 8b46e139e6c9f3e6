"""Processes that decode what threads may not: they give the same pixels, they can be ended, and one client's do not hold up another's."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import psutil
import pytest
from helpers import hostile_files as hostile
from helpers.hostile_files import encode
from PIL import Image
from prometheus_client import REGISTRY

from llava_gateway.demo.images import data_uri
from llava_gateway.errors import InvalidImage, TooManyRequests, Unavailable
from llava_gateway.images import decode, worker_pool
from llava_gateway.images.decode import Transform, open_image
from llava_gateway.images.geometry import ImageTokens
from llava_gateway.images.loader import ImageLoader
from llava_gateway.images.worker_pool import WorkerPool
from llava_gateway.observability.context import RequestContext, request_context
from llava_gateway.settings import Settings
from llava_gateway.types import ImageUrl, PreparedImage, VisionConfig

pillow_heif.register_heif_opener()  # for writing, in tests
VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)
GRIDS = ((672, 336), (336, 672), (672, 672))
NEXT = VisionConfig(336, ImageTokens(576, 336, 24, GRIDS), min_image_tokens=576, max_image_tokens=2928, grids=GRIDS)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).resize((800, 600), Image.Resampling.BICUBIC)
BOUND = 60
"""Seconds that nothing here takes, even on a busy machine."""


def run(work: Callable[[ImageLoader], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        loader = ImageLoader(Settings(**settings))
        try:
            await asyncio.wait_for(work(loader), 2 * BOUND)
        finally:
            await loader.close()

    asyncio.run(main())


def load(loader: ImageLoader, data: bytes, client: str = "192.0.2.1") -> asyncio.Task[tuple[PreparedImage, ...]]:
    """As a request of a client does it."""
    with request_context(RequestContext(address=client)):
        return asyncio.create_task(loader.load([ImageUrl(data_uri(data), "image")], VISION))


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "llava_gateway.images.worker" in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def at_work(loader: ImageLoader) -> list[psutil.Process]:
    """Workers that have an image."""
    pool = loader._workers
    started = [task.result() for task in pool._workers if task.done() and task not in pool._idle]
    return [psutil.Process(worker.process.pid) for worker in started]


async def stopped(loader: ImageLoader, count: int) -> list[psutil.Process]:
    """So many workers that are at an image, which then takes for ever."""
    await until(lambda: len(at_work(loader)) == count)
    found = at_work(loader)
    for worker in found:
        worker.suspend()
    return found


def ends(cause: str) -> float:
    return REGISTRY.get_sample_value("llava_image_worker_ends_total", {"cause": cause}) or 0


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + BOUND
    while workers():
        assert time.monotonic() < deadline, "workers outlive their pool"
        time.sleep(0.01)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "JPEG": encode(PHOTO, "JPEG"),
    "turned JPEG": encode(PHOTO, "JPEG", exif=turned(6)),
    "progressive": encode(PHOTO, "JPEG", progressive=True, exif=turned(8)),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "large JPEG": encode(PHOTO.resize((3000, 2000)), "JPEG"),
    "PNG": encode(PHOTO, "PNG"),
    "turned PNG": encode(PHOTO.convert("RGBA"), "PNG", exif=turned(5)),
    "grey PNG": encode(Image.fromarray(np.asarray(PHOTO.convert("L"), np.uint16) * 257), "PNG"),
    "palette": encode(PHOTO.convert("P"), "PNG", transparency=3),
    "WEBP": encode(PHOTO, "WEBP"),
    "lossless WEBP": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True, exif=turned(3)),
    "GIF": encode(PHOTO, "GIF"),
    "BMP": encode(PHOTO, "BMP"),
    "TIFF": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "turned TIFF": encode(PHOTO, "TIFF", compression="jpeg", exif=turned(6)),
    "AVIF": encode(PHOTO, "AVIF", exif=turned(6)),
    "HEIC": encode(PHOTO, "HEIF", exif=turned(6)),
}


def test_workers_and_threads_give_the_same_pixels() -> None:
    async def main() -> None:
        pool = WorkerPool(Settings())
        try:
            for name, data in FILES.items():
                for transform in (Transform(VISION, "crop"), Transform(VISION, "pad"), Transform(NEXT, "crop")):
                    opened = open_image(data, 50_000_000)
                    assert await pool.measure(data, "") == opened.size, name
                    pixels = await pool.prepare(data, transform.target(opened.size), "")
                    expected = decode.prepare(opened, transform)
                    assert (pixels.size, pixels.tobytes()) == (expected.size, expected.tobytes()), (name, transform.name)
        finally:
            await pool.close()

    asyncio.run(main())


def test_only_what_needs_a_worker_starts_one() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["JPEG"])
        assert not workers()
        await load(loader, FILES["progressive"])
        await until(lambda: len(workers()) == 2)  # the one that was needed, and one ahead
        await load(loader, FILES["GIF"])
        assert len(workers()) == 2

    run(work)


@pytest.mark.parametrize("make", [hostile.empty_idats, hostile.long_gif_comment])
def test_an_image_that_takes_too_much_cpu_time_is_refused(make: Callable[[], bytes]) -> None:
    data, seconds = make(), 0.25

    async def work(loader: ImageLoader) -> None:
        before, ended = resource.getrusage(resource.RUSAGE_CHILDREN), ends("cpu")
        with pytest.raises(InvalidImage, match=r"takes more than 0\.25 seconds to decode; send it") as refusal:
            await load(loader, data)
        assert refusal.value.param == "image"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 8 * seconds  # two workers start, too
        assert ends("cpu") == ended + 1
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=seconds)


def test_an_image_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BASE_MEMORY", 96 << 20)
    monkeypatch.setattr(worker_pool, "BYTES_PER_PIXEL", 1)

    async def work(loader: ImageLoader) -> None:
        with pytest.raises(InvalidImage, match="takes too much memory to decode; send it"):
            await load(loader, encode(Image.new("RGBA", (5000, 4000)), "PNG"))
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, max_image_megapixels=20, max_image_mb=1)


def test_a_hostile_client_holds_up_nobody() -> None:
    """Everyday pictures are answered, and other clients' pictures that need a worker, while all that it sent is still in work."""

    async def work(loader: ImageLoader) -> None:
        slow = [load(loader, hostile.empty_idats() + bytes(number)) for number in range(10)]
        hostile_workers = await stopped(loader, 2)
        for data, client in ((FILES["JPEG"], "192.0.2.1"), (FILES["PNG"], "192.0.2.2"), (FILES["progressive"], "192.0.2.2")):
            assert (await load(loader, data, client))[0].source == (800, 600)
        assert not any(task.done() for task in slow)
        assert all(worker.is_running() for worker in hostile_workers)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    run(work, image_threads=2, image_cpu_seconds=BOUND)


def test_clients_take_workers_in_turn() -> None:
    """One picture of a client waits for one of another's at most, not for all of them."""

    async def work(loader: ImageLoader) -> None:
        slow = [load(loader, FILES["GIF"] + bytes(number)) for number in range(40)]
        (polite,) = await load(loader, FILES["progressive"], "192.0.2.2")
        assert polite.source == (800, 600)
        assert sum(task.done() for task in slow) < 20
        await asyncio.gather(*slow)

    run(work, image_threads=1)


def test_files_that_wait_are_bounded_in_bytes() -> None:
    async def work(loader: ImageLoader) -> None:
        def waiting() -> float:
            return REGISTRY.get_sample_value("llava_image_file_bytes") or 0

        data = hostile.empty_idats()  # 18 MB
        slow = [load(loader, data), load(loader, data)]  # counted once
        await stopped(loader, 2)
        assert waiting() == len(data)
        with pytest.raises(TooManyRequests, match="Too many images wait"):
            await load(loader, data + bytes(1), "192.0.2.2")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert waiting() == 0
        assert (await load(loader, data + bytes(1), "192.0.2.2"))[0].source == (16, 16)

    run(work, max_bodies_mb=20, image_cpu_seconds=BOUND)


def test_the_worker_of_a_client_that_left_is_ended() -> None:
    async def work(loader: ImageLoader) -> None:
        for data in (hostile.empty_idats(), hostile.long_gif_comment()):
            ended = ends("left")
            leaving = load(loader, data)
            (worker,) = await stopped(loader, 1)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until(lambda worker=worker: not worker.is_running())  # type: ignore[misc]
            assert ends("left") == ended + 1
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=BOUND)


def test_a_shared_decode_goes_on_until_the_last_client_has_left() -> None:
    def count(source: str) -> float:
        return REGISTRY.get_sample_value("llava_images_total", {"source": source}) or 0

    async def work(loader: ImageLoader) -> None:
        data, decoded, shared = hostile.empty_idats(), count("decoded"), count("shared")
        first = load(loader, data)
        await until(lambda: count("decoded") > decoded)
        (worker,) = await stopped(loader, 1)
        second = load(loader, data, "192.0.2.2")
        await until(lambda: count("shared") > shared)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert [worker] == at_work(loader)
        worker.resume()
        assert (await second)[0].source == (16, 16)
        third = load(loader, hostile.empty_idats(1_400_000))
        (worker,) = await stopped(loader, 1)
        third.cancel()
        await until(lambda: not worker.is_running())

    run(work, image_cpu_seconds=BOUND)


def test_a_worker_that_gets_no_time_is_given_up() -> None:
    async def work(loader: ImageLoader) -> None:
        given_up = ends("busy")
        slow = load(loader, hostile.empty_idats())
        (worker,) = await stopped(loader, 1)
        with pytest.raises(Unavailable, match="too busy to decode") as refusal:
            await slow
        assert refusal.value.retry_after
        await until(lambda: not worker.is_running())
        assert ends("busy") == given_up + 1

    run(work, image_cpu_seconds=0.3)


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["GIF"])
        for worker in [await task for task in loader._workers._idle]:
            worker.process.kill()
        assert (await load(loader, FILES["BMP"]))[0].source == (800, 600)

    run(work)


def test_a_worker_that_was_killed_while_it_started_is_replaced() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["GIF"])
        await until(lambda: len(workers()) == 2)
        for worker in workers():
            worker.kill()
        assert (await load(loader, FILES["BMP"]))[0].source == (800, 600)

    run(work)


def test_an_image_whose_worker_was_killed_is_decoded_by_another() -> None:
    async def work(loader: ImageLoader) -> None:
        died = ends("died")
        slow = load(loader, hostile.empty_idats())
        (worker,) = await stopped(loader, 1)
        worker.kill()
        assert (await slow)[0].source == (16, 16)
        assert ends("died") == died + 1

    run(work, image_cpu_seconds=BOUND)


def test_an_image_that_ends_every_worker_is_refused() -> None:
    async def work(loader: ImageLoader) -> None:
        slow, died = load(loader, hostile.empty_idats()), ends("died")
        for number in (1, 2):
            (worker,) = await stopped(loader, 1)
            worker.send_signal(signal.SIGSEGV)
            worker.resume()
            await until(lambda number=number: ends("died") == died + number)  # type: ignore[misc]
        with pytest.raises(InvalidImage, match="damaged"):
            await slow
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=BOUND)


def test_what_libtiff_says_does_not_reach_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES["TIFF"]
    damaged = data[:200] + bytes(len(data) // 2) + data[200 + len(data) // 2 :]

    async def work(loader: ImageLoader) -> None:
        await asyncio.gather(load(loader, damaged), load(loader, FILES["turned TIFF"][:-300]), return_exceptions=True)

    run(work)
    assert capfd.readouterr() == ("", "")


SERVER = """
import asyncio
import sys
from pathlib import Path
from llava_gateway.types import ImageUrl
from llava_gateway.engine import Vision
from llava_gateway.images.loader import ImageLoader
from llava_gateway.settings import Settings

async def main():
    loader = ImageLoader(Settings())
    await loader.load([ImageUrl(sys.stdin.readline().strip(), "")], Vision(336, lambda *_: 576, fewest=576, max_image_tokens=576))
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_gateway(ended_by: signal.Signals, tmp_path: Path) -> None:
    root = str(Path(decode.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    gateway = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert gateway.stdin
    assert gateway.stdout
    try:
        gateway.stdin.write(data_uri(FILES["GIF"]) + "\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == "ready\n"
        children = psutil.Process(gateway.pid).children()
        assert children
        assert all(root in worker.environ()["PYTHONPATH"] for worker in children)
        gateway.send_signal(ended_by)
        gateway.wait(BOUND)
        assert not psutil.wait_procs(children, timeout=BOUND)[1]
    finally:
        gateway.kill()
        gateway.wait()
