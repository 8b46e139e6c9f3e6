"""Worker processes for images: they give the same pixels as threads, they can be killed, and clients do not delay one another."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pillow_heif
import psutil
import pytest
from helpers import hostile_files as hostile
from helpers.hostile_files import encode
from helpers.processes import own_children
from PIL import Image
from prometheus_client import REGISTRY

from llava_gateway.demo.images import data_uri
from llava_gateway.errors import InvalidImage, TooManyRequests, Unavailable
from llava_gateway.images import decode, image_workers, worker_pool
from llava_gateway.images.decode import Transform, open_image
from llava_gateway.images.geometry import ImageTokens
from llava_gateway.images.image_workers import ImageWorkers
from llava_gateway.images.loader import ImageLoader
from llava_gateway.images.worker_pool import Worker
from llava_gateway.model_info import VisionConfig
from llava_gateway.observability.context import RequestContext, request_context
from llava_gateway.settings import Settings
from llava_gateway.types import ImageUrl, PreparedImage

pytestmark = pytest.mark.slow

pillow_heif.register_heif_opener()  # for writing, in tests
VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)
GRIDS = ((672, 336), (336, 672), (672, 672))
NEXT = VisionConfig(336, ImageTokens(576, 336, 24, GRIDS), min_image_tokens=576, max_image_tokens=2928, grids=GRIDS)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).resize((800, 600), Image.Resampling.BICUBIC)
BOUND = 120
"""Seconds. Nothing in this file takes so long, even on a busy machine."""


def run(work: Callable[[ImageLoader], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        loader = ImageLoader(Settings(**settings))
        try:
            await asyncio.wait_for(work(loader), 2 * BOUND)
        finally:
            await loader.close()

    asyncio.run(main())


def load(loader: ImageLoader, data: bytes, client: str = "192.0.2.1") -> asyncio.Task[tuple[PreparedImage, ...]]:
    """Load an image in the context of a request of `client`."""
    with request_context(RequestContext(address=client)):
        return asyncio.create_task(loader.load([ImageUrl(data_uri(data), "image")], VISION))


def workers() -> list[psutil.Process]:
    return own_children("llava_gateway.images.worker")


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND):
        while not condition():  # noqa: ASYNC110 # there is no event for this
            await asyncio.sleep(0.01)


def busy_workers(loader: ImageLoader) -> list[psutil.Process]:
    """Return the workers that have an image."""
    pool = loader._workers
    started = [task.result() for task in pool._workers if task.done() and task not in pool._idle]
    return [psutil.Process(worker.process.pid) for worker in started]


Step = Literal["measure", "prepare"]


class Suspender:
    """Suspends each worker that gets one of `files`, before it reads the file. The worker makes no progress until it is resumed."""

    def __init__(self) -> None:
        self.files: dict[bytes, Step] = {}
        self._suspended: set[int] = set()

    def note(self, worker: Worker, data: bytes, target: object) -> None:
        if self.files.get(data) == ("prepare" if target else "measure"):
            psutil.Process(worker.process.pid).suspend()
            self._suspended.add(worker.process.pid)

    async def workers(self, loader: ImageLoader, count: int) -> list[psutil.Process]:
        """Wait until `count` busy workers are suspended, and return them."""
        await wait_until(lambda: len(self._find(loader)) == count)
        return self._find(loader)

    def _find(self, loader: ImageLoader) -> list[psutil.Process]:
        return [worker for worker in busy_workers(loader) if worker.pid in self._suspended]


@pytest.fixture
def suspender(monkeypatch: pytest.MonkeyPatch) -> Suspender:
    found, ask = Suspender(), Worker.ask

    async def suspend_and_ask(self: Worker, data: bytes, target: dict[str, Any] | None) -> dict[str, Any] | None:
        found.note(self, data, target)
        return await ask(self, data, target)

    monkeypatch.setattr(Worker, "ask", suspend_and_ask)
    return found


def worker_ends(cause: str) -> float:
    return REGISTRY.get_sample_value("llava_image_worker_ends_total", {"cause": cause}) or 0


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + BOUND
    while workers():
        assert time.monotonic() < deadline, "workers outlive their pool"
        time.sleep(0.01)


def exif_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "JPEG": encode(PHOTO, "JPEG"),
    "turned JPEG": encode(PHOTO, "JPEG", exif=exif_orientation(6)),
    "progressive": encode(PHOTO, "JPEG", progressive=True, exif=exif_orientation(8)),
    "CMYK": encode(PHOTO.convert("CMYK"), "JPEG"),
    "large JPEG": encode(PHOTO.resize((2000, 1400)), "JPEG"),
    "PNG": encode(PHOTO, "PNG"),
    "turned PNG": encode(PHOTO.convert("RGBA"), "PNG", exif=exif_orientation(5)),
    "grey PNG": encode(Image.fromarray(np.asarray(PHOTO.convert("L"), np.uint16) * 257), "PNG"),
    "palette": encode(PHOTO.convert("P"), "PNG", transparency=3),
    "WEBP": encode(PHOTO, "WEBP"),
    "lossless WEBP": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True, exif=exif_orientation(3)),
    "GIF": encode(PHOTO, "GIF"),
    "BMP": encode(PHOTO, "BMP"),
    "TIFF": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "turned TIFF": encode(PHOTO, "TIFF", compression="jpeg", exif=exif_orientation(6)),
    "AVIF": encode(PHOTO, "AVIF", exif=exif_orientation(6)),
    "HEIC": encode(PHOTO, "HEIF", exif=exif_orientation(6)),
}


def test_workers_and_threads_give_the_same_pixels() -> None:
    async def main() -> None:
        pool = ImageWorkers(Settings())
        try:
            for name, data in FILES.items():
                for transform in (Transform(VISION, "crop"), Transform(VISION, "pad"), Transform(NEXT, "crop")):
                    opened = open_image(data, 50_000_000)
                    assert await pool.measure(data, "") == opened.size, name
                    pixels = await pool.prepare(data, transform.target(opened.size), "")
                    expected = decode.render(opened, transform.target(opened.size))
                    assert (pixels.size, pixels.tobytes()) == (expected.size, expected.tobytes()), (name, transform.name)
        finally:
            await pool.close()

    asyncio.run(main())


def test_an_ordinary_image_starts_no_worker() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["JPEG"])
        assert not workers()
        await load(loader, FILES["progressive"])
        await wait_until(lambda: len(workers()) == 2)  # a busy worker, and an idle one for the next image
        await load(loader, FILES["GIF"])
        assert len(workers()) == 2

    run(work)


@pytest.mark.parametrize("make", [hostile.empty_idats, hostile.long_gif_comment])
def test_an_image_that_takes_too_much_cpu_time_is_refused(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data, seconds = make(), 0.25
    monkeypatch.setattr(worker_pool, "WALL_TIME", BOUND / seconds)  # only CPU time ends an image, however busy the machine is

    async def work(loader: ImageLoader) -> None:
        before, killed = resource.getrusage(resource.RUSAGE_CHILDREN), worker_ends("cpu")
        with pytest.raises(InvalidImage, match=r"takes more than 0\.25 seconds to decode; send it") as refusal:
            await load(loader, data)
        assert refusal.value.param == "image"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 8 * seconds  # two workers start, too
        assert worker_ends("cpu") == killed + 1
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=seconds)


def test_an_image_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_workers, "BASE_MEMORY", 96 << 20)
    monkeypatch.setattr(image_workers, "BYTES_PER_PIXEL", 1)

    async def work(loader: ImageLoader) -> None:
        with pytest.raises(InvalidImage, match="takes too much memory to decode; send it"):
            await load(loader, encode(Image.new("RGBA", (5000, 4000)), "PNG"))
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, max_image_megapixels=20, max_image_mb=1)


def variant(number: int) -> bytes:
    """Return a GIF that needs a worker. Each number gives other bytes."""
    return FILES["GIF"] + bytes(number)


def test_a_client_with_slow_images_does_not_delay_other_clients(suspender: Suspender) -> None:
    """Its ordinary images are also loaded, while all its slow images are in progress."""

    async def work(loader: ImageLoader) -> None:
        suspender.files = {variant(number): "measure" for number in range(10)}
        slow = [load(loader, data) for data in suspender.files]
        suspended = await suspender.workers(loader, 2)
        for data, client in ((FILES["JPEG"], "192.0.2.1"), (FILES["PNG"], "192.0.2.2"), (FILES["progressive"], "192.0.2.2")):
            assert (await load(loader, data, client))[0].source == (800, 600)
        assert not any(task.done() for task in slow)
        assert all(worker.is_running() for worker in suspended)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    run(work, image_threads=2, image_cpu_seconds=BOUND)


def test_a_client_with_many_images_does_not_delay_another_client() -> None:
    """An image of one client waits for at most one image of another client."""

    async def work(loader: ImageLoader) -> None:
        many = [load(loader, variant(number)) for number in range(40)]
        (other,) = await load(loader, FILES["progressive"], "192.0.2.2")
        assert other.source == (800, 600)
        assert sum(task.done() for task in many) < 20
        await asyncio.gather(*many)

    run(work, image_threads=1, image_cpu_seconds=BOUND)


def test_the_bytes_of_waiting_files_are_limited(suspender: Suspender) -> None:
    async def work(loader: ImageLoader) -> None:
        def waiting() -> float:
            return REGISTRY.get_sample_value("llava_image_file_bytes") or 0

        data = variant(18_000_000)
        suspender.files = {data: "measure"}
        slow = [load(loader, data), load(loader, data)]  # the file counts once
        await suspender.workers(loader, 2)
        assert waiting() == len(data)
        with pytest.raises(TooManyRequests, match="Too many images or videos wait"):
            await load(loader, data + bytes(1), "192.0.2.2")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert waiting() == 0
        assert (await load(loader, data + bytes(1), "192.0.2.2"))[0].source == (800, 600)

    run(work, max_bodies_mb=20, image_cpu_seconds=BOUND)


@pytest.mark.parametrize("step", ["measure", "prepare"])
def test_a_worker_does_not_outlive_its_cancelled_request(suspender: Suspender, step: Step) -> None:
    async def work(loader: ImageLoader) -> None:
        suspender.files, killed = {variant(1): step}, worker_ends("left")
        cancelled = load(loader, variant(1))
        (worker,) = await suspender.workers(loader, 1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await wait_until(lambda: not worker.is_running())
        assert worker_ends("left") == killed + 1
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=BOUND)


def test_a_shared_decode_is_cancelled_only_with_its_last_request(suspender: Suspender) -> None:
    def count(source: str) -> float:
        return REGISTRY.get_sample_value("llava_images_total", {"source": source}) or 0

    async def work(loader: ImageLoader) -> None:
        suspender.files, shared = {variant(1): "prepare", variant(2): "prepare"}, count("shared")
        first = load(loader, variant(1))
        (worker,) = await suspender.workers(loader, 1)
        second = load(loader, variant(1), "192.0.2.2")
        await wait_until(lambda: count("shared") > shared)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert [worker] == busy_workers(loader)
        worker.resume()
        assert (await second)[0].source == (800, 600)
        third = load(loader, variant(2))
        (worker,) = await suspender.workers(loader, 1)
        third.cancel()
        await wait_until(lambda: not worker.is_running())

    run(work, image_cpu_seconds=BOUND)


def test_a_worker_that_gets_no_cpu_time_does_not_hold_its_request(suspender: Suspender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "WALL_TIME", 1)

    async def work(loader: ImageLoader) -> None:
        suspender.files, killed = {variant(1): "measure"}, worker_ends("busy")
        slow = load(loader, variant(1))
        (worker,) = await suspender.workers(loader, 1)
        with pytest.raises(Unavailable, match="too busy to decode") as refusal:
            await slow
        assert refusal.value.retry_after
        await wait_until(lambda: not worker.is_running())
        assert worker_ends("busy") == killed + 1

    run(work, image_cpu_seconds=0.5)


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["GIF"])
        for worker in [await task for task in loader._workers._idle]:
            worker.process.kill()
            await worker.process.wait()
        assert (await load(loader, FILES["BMP"]))[0].source == (800, 600)

    run(work)


def test_a_worker_that_was_killed_during_its_start_is_replaced() -> None:
    async def work(loader: ImageLoader) -> None:
        await load(loader, FILES["GIF"])
        await wait_until(lambda: len(workers()) == 2)
        for worker in workers():
            worker.kill()
        for task in loader._workers._workers:
            if task.done() and not task.exception():  # the pool must notice this death first, since two deaths count against an image
                await task.result().process.wait()
        assert (await load(loader, FILES["BMP"]))[0].source == (800, 600)

    run(work)


def test_an_image_whose_worker_was_killed_is_decoded_by_another_worker(suspender: Suspender) -> None:
    async def work(loader: ImageLoader) -> None:
        suspender.files, died = {variant(1): "measure"}, worker_ends("died")
        slow = load(loader, variant(1))
        (worker,) = await suspender.workers(loader, 1)
        suspender.files = {}
        worker.kill()
        assert (await slow)[0].source == (800, 600)
        assert worker_ends("died") == died + 1

    run(work, image_cpu_seconds=BOUND)


def test_an_image_that_kills_every_worker_is_refused(suspender: Suspender) -> None:
    async def work(loader: ImageLoader) -> None:
        suspender.files, died = {variant(1): "measure"}, worker_ends("died")
        slow = load(loader, variant(1))
        for number in (1, 2):
            (worker,) = await suspender.workers(loader, 1)
            worker.send_signal(signal.SIGSEGV)
            worker.resume()
            await wait_until(lambda number=number: worker_ends("died") == died + number)  # type: ignore[misc]
        with pytest.raises(InvalidImage, match="damaged"):
            await slow
        assert (await load(loader, FILES["GIF"]))[0].source == (800, 600)

    run(work, image_cpu_seconds=BOUND)


def test_warnings_of_libtiff_do_not_reach_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES["TIFF"]
    damaged = data[:200] + bytes(len(data) // 2) + data[200 + len(data) // 2 :]

    async def work(loader: ImageLoader) -> None:
        await asyncio.gather(load(loader, damaged), load(loader, FILES["turned TIFF"][:-300]), return_exceptions=True)

    run(work)
    assert capfd.readouterr() == ("", "")


SERVER = """
import asyncio
import sys

from llava_gateway.images.loader import ImageLoader
from llava_gateway.settings import Settings
from llava_gateway.model_info import VisionConfig
from llava_gateway.types import ImageUrl

VISION = VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576)

async def main():
    loader = ImageLoader(Settings())
    await loader.load([ImageUrl(sys.stdin.readline().strip(), "")], VISION)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_the_gateway(ended_by: signal.Signals, tmp_path: Path) -> None:
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
