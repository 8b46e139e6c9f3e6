"""A pool of processes that decode images whose cost is not known in advance (see `worker`). Each process can be killed at any time."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava_gateway.errors import InvalidImage, Unavailable
from llava_gateway.images.decode import Target
from llava_gateway.images.fair_queue import FairSlots
from llava_gateway.images.geometry import Size
from llava_gateway.observability import metrics
from llava_gateway.settings import Settings

log = logging.getLogger(__name__)

BASE_MEMORY = 256 << 20
"""The address space of a worker without an image, in bytes: 64 MiB for the interpreter and its libraries, and a reserve."""
BYTES_PER_PIXEL = 24
"""The address space for the decoding of the largest image. The greatest measured value is 22, for a lossy WebP with transparency."""
PIECE = 1 << 20
"""The number of bytes of a file that are copied before the event loop continues with other work."""
KEPT_MEMORY = 1 << 20
"""The shared memory that an idle worker keeps, in bytes. It is enough for most files and pixels."""
START_TIMEOUT = 30
"""The longest start of a worker, in seconds. On an idle machine a start takes a tenth of a second."""
WALL_TIME = 6
"""The longest time of an image on a busy machine, as a multiple of its CPU time."""
ATTEMPTS = 2
"""The number of attempts at an image. A second one follows if the worker may have died for another reason than the image."""
IMPORTS = (*filter(None, sys.path), str(Path(__file__).parents[2]))
"""The import path of a worker: that of this process, and this package's own folder."""


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process, seen from the gateway."""

    process: Process
    shared: int
    """The descriptor of the memory that the worker shares with this process."""

    opened: bytes | None = None
    """The file that the worker has opened last. It need not be sent again."""

    async def ask(self, data: bytes, target: dict[str, Any] | None) -> dict[str, Any] | None:
        """Send a request for the file `data`. Return the response, or None if the worker has died."""
        assert self.process.stdin
        assert self.process.stdout
        length = None
        if self.opened is not data:
            length = len(data)
            await self._write_file(memoryview(data))
        line = b""
        with suppress(OSError, RuntimeError):  # uvloop raises RuntimeError if the pipe is closed
            self.process.stdin.write(json.dumps({"length": length, "target": target}).encode() + b"\n")
            line = await self.process.stdout.readline()
        response: dict[str, Any] | None = json.loads(line) if line else None
        self.opened = data if response and target is None else None
        return response

    async def _write_file(self, data: memoryview) -> None:
        """Copy the file to shared memory, in pieces: the first write to 20 MiB of new memory takes a tenth of a second."""
        for at in range(0, len(data), PIECE):
            os.pwrite(self.shared, data[at : at + PIECE], at)
            await asyncio.sleep(0)

    def pixels(self, size: Size) -> bytes:
        """Return the pixels of the decoded image, in RGB."""
        return os.pread(self.shared, size[0] * size[1] * 3, 0)

    def free_memory(self) -> None:
        """Free the shared memory of the file or of the pixels."""
        if self.opened is None:
            os.ftruncate(self.shared, KEPT_MEMORY)

    def kill(self) -> None:
        """Kill the process and close the shared memory."""
        with suppress(ProcessLookupError):
            self.process.kill()
        os.close(self.shared)


class WorkerPool:
    """Starts workers on demand, and keeps one idle worker beside the busy ones. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._max_workers = 2 * settings.image_threads  # one client may have half of them
        self._slots = FairSlots(self._max_workers, per_client=settings.image_threads)
        self._workers: set[asyncio.Task[Worker]] = set()  # running or starting
        self._idle: list[asyncio.Task[Worker]] = []  # the workers without an image
        self._reaping: set[asyncio.Task[int]] = set()
        self._closed = False

    @property
    def alive(self) -> int:
        """The number of workers that run or start."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """The number of images that wait for a worker."""
        return self._slots.waiting

    def warm(self) -> None:
        """Start a worker if none is idle and the limit allows one more."""
        if not self._closed and not self._idle and len(self._workers) < self._max_workers:
            self._idle.append(self._launch())

    async def measure(self, data: bytes, client: str) -> Size:
        """Return the size that the image file declares, in pixels. Raises InvalidImage and Unavailable."""
        size, _ = await self._work(data, None, client)
        return size

    async def prepare(self, data: bytes, target: Target, client: str) -> Image.Image:
        """Return the image as `target` wants it, in RGB. Raises InvalidImage and Unavailable."""
        values = {"sizes": list(target.sizes.items()), "aspect_ratio": target.aspect_ratio, "mean_color": target.mean_color}
        size, pixels = await self._work(data, values, client)
        return Image.frombytes("RGB", size, pixels)

    async def close(self) -> None:
        """Kill the workers, also the busy ones."""
        self._closed = True
        workers, self._workers = self._workers, set()
        for task in workers:
            task.cancel()
        started = await asyncio.gather(*workers, return_exceptions=True)
        for worker in started:
            if isinstance(worker, Worker):
                self._kill(worker)
        await asyncio.gather(*self._reaping)

    async def _work(self, data: bytes, target: dict[str, Any] | None, client: str) -> tuple[Size, bytes]:
        """Return the size and the pixels. The pixels are empty without a target."""
        async with self._slots.slot(client):
            for _ in range(ATTEMPTS):
                result = await self._attempt(data, target)
                if not isinstance(result, int):
                    return result
                if result == -signal.SIGPROF:
                    seconds = self._settings.image_cpu_seconds
                    raise InvalidImage(
                        f"The image takes more than {seconds:g} seconds to decode; send it smaller, or as a PNG or a baseline JPEG."
                    )
        raise InvalidImage("The image is damaged or cut short.")

    async def _attempt(self, data: bytes, target: dict[str, Any] | None) -> tuple[Size, bytes] | int:
        """Return the size and the pixels, or the exit status of a worker that has died.

        If this call is cancelled, the worker is killed.
        """
        started = await self._acquire_worker()
        worker = started.result()
        self.warm()
        response, cause = None, "left"
        try:
            async with asyncio.timeout(WALL_TIME * self._settings.image_cpu_seconds):
                response = await worker.ask(data, target)
            if response is None:
                status = await worker.process.wait()
                cause = "cpu" if status == -signal.SIGPROF else "died"
                return status
            if "size" not in response:
                raise InvalidImage(response["error"], code=response.get("code"))
            width, height = response["size"]
            return (width, height), worker.pixels((width, height)) if target else b""
        except TimeoutError:
            cause = "busy"
            raise Unavailable("The server is too busy to decode this image.", code="busy", retry_after=1) from None
        finally:
            if response is None:
                metrics.IMAGE_WORKER_ENDS.labels(cause).inc()
                self._discard(started)
                self.warm()
            elif not self._closed:
                worker.free_memory()
                self._idle.append(started)

    async def _acquire_worker(self) -> asyncio.Task[Worker]:
        """Return an idle worker, or start one. Raises Unavailable."""
        while True:
            was_idle = bool(self._idle)
            task = self._idle.pop() if was_idle else self._launch()
            try:
                worker = await asyncio.shield(task)
            except asyncio.CancelledError:  # the client has disconnected; the next image gets the worker
                self._idle.append(task)
                raise
            except Unavailable:
                self._workers.discard(task)
                if was_idle:
                    continue
                raise
            if worker.process.returncode is None:
                return task
            self._discard(task)

    def _launch(self) -> asyncio.Task[Worker]:
        task = asyncio.create_task(self._start())
        self._workers.add(task)
        return task

    def _discard(self, task: asyncio.Task[Worker]) -> None:
        if task in self._workers:  # `close` has not killed it
            self._workers.remove(task)
            self._kill(task.result())

    def _kill(self, worker: Worker) -> None:
        worker.kill()
        reaping = asyncio.create_task(worker.process.wait())
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)

    async def _start(self) -> Worker:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return await self._spawn()
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            log.error("a worker process for images does not start: %s", error or type(error).__name__)
            raise Unavailable("Images of this kind cannot be decoded now.", code="busy", retry_after=1) from error

    async def _spawn(self) -> Worker:
        settings = self._settings
        max_pixels = settings.max_image_megapixels * 1_000_000
        memory = BASE_MEMORY + 3 * (settings.max_image_mb << 20) + BYTES_PER_PIXEL * max_pixels
        shared = os.memfd_create("image")
        arguments = map(str, (shared, memory, settings.image_cpu_seconds, max_pixels))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-S", "-m", "llava_gateway.images.worker", *arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,  # libtiff and other libraries write their warnings about a file there
                pass_fds=(shared,),
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTS)},
            )
        except BaseException:
            os.close(shared)
            raise
        worker = Worker(process, shared)
        assert process.stdout
        try:
            if not await process.stdout.readline():
                raise EOFError("the process has ended")
        except BaseException:
            self._kill(worker)
            raise
        return worker
