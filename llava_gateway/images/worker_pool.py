"""Processes that decode images whose cost is not known beforehand (see `worker`), each of which can be ended at any moment."""

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
"""Bytes of address space of a worker beside an image: the interpreter and its libraries, 64 MiB, and room."""
BYTES_PER_PIXEL = 24
"""Of address space while an image of the largest size is decoded. The most that was measured is 22, of a lossy WebP with transparency."""
PIECE = 1 << 20
"""Bytes of a file that are handed over before the event loop does something else."""
KEPT_MEMORY = 1 << 20
"""Bytes of shared memory of a worker without an image: as many as most files and pixels need."""
START_TIMEOUT = 30
"""Seconds of a start, which takes a tenth of one where the machine is not busy."""
WALL_TIME = 6
"""Times the CPU time of an image that it may take on a busy machine."""
ATTEMPTS = 2
"""At an image: once more if something else than the image may have ended the worker."""
IMPORTS = (*filter(None, sys.path), str(Path(__file__).parents[2]))
"""Where a worker finds the packages of this process, in this order, and this one."""


@dataclass(slots=True, eq=False)
class Worker:
    process: Process
    shared: int
    """Descriptor of the memory that it shares with this process."""

    opened: bytes | None = None
    """The file whose size it has told last, which it need not be sent again."""

    async def ask(self, data: bytes, target: dict[str, Any] | None) -> dict[str, Any] | None:
        """Its answer; None if it has ended."""
        assert self.process.stdin
        assert self.process.stdout
        length = None
        if self.opened is not data:
            length = len(data)
            await self._hand_over(memoryview(data))
        line = b""
        with suppress(OSError, RuntimeError):  # uvloop's way to say that the pipe is closed
            self.process.stdin.write(json.dumps({"length": length, "target": target}).encode() + b"\n")
            line = await self.process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        self.opened = data if answer and target is None else None
        return answer

    async def _hand_over(self, data: memoryview) -> None:
        """In pieces: the first time that so much memory is touched takes a tenth of a second for 20 MiB."""
        for at in range(0, len(data), PIECE):
            os.pwrite(self.shared, data[at : at + PIECE], at)
            await asyncio.sleep(0)

    def pixels(self, size: Size) -> bytes:
        return os.pread(self.shared, size[0] * size[1] * 3, 0)

    def free_memory(self) -> None:
        """Of a file or of pixels."""
        if self.opened is None:
            os.ftruncate(self.shared, KEPT_MEMORY)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        os.close(self.shared)


class WorkerPool:
    """Starts a worker with the first picture and keeps one ahead of those at work. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._most = 2 * settings.image_threads  # so that one client, who may have half of them, leaves some to the others
        self._slots = FairSlots(self._most, per_client=settings.image_threads)
        self._workers: set[asyncio.Task[Worker]] = set()  # started, or just starting
        self._idle: list[asyncio.Task[Worker]] = []  # those of them that have no image
        self._reaping: set[asyncio.Task[int]] = set()
        self._closed = False

    @property
    def alive(self) -> int:
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """Images that wait for a worker."""
        return self._slots.waiting

    def warm(self) -> None:
        """Have a worker ready soon, if none is idle and there may be one more."""
        if not self._closed and not self._idle and len(self._workers) < self._most:
            self._idle.append(self._launch())

    async def measure(self, data: bytes, client: str) -> Size:
        """The size in pixels that the image declares. Raises InvalidImage and Unavailable."""
        size, _ = await self._work(data, None, client)
        return size

    async def prepare(self, data: bytes, target: Target, client: str) -> Image.Image:
        """Raises InvalidImage and Unavailable."""
        plain = {"sizes": list(target.sizes.items()), "aspect_ratio": target.aspect_ratio, "mean_color": target.mean_color}
        size, pixels = await self._work(data, plain, client)
        return Image.frombytes("RGB", size, pixels)

    async def close(self) -> None:
        """End the workers, and whatever they are at."""
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
        async with self._slots.slot(client):
            for _ in range(ATTEMPTS):
                ended = await self._attempt(data, target)
                if not isinstance(ended, int):
                    return ended
                if ended == -signal.SIGPROF:
                    seconds = self._settings.image_cpu_seconds
                    raise InvalidImage(
                        f"The image takes more than {seconds:g} seconds to decode; send it smaller, or as a PNG or a baseline JPEG."
                    )
        raise InvalidImage("The image is damaged or cut short.")

    async def _attempt(self, data: bytes, target: dict[str, Any] | None) -> tuple[Size, bytes] | int:
        """The result; or how the worker ended. A worker whose answer nobody waits for is ended."""
        started = await self._take()
        worker = started.result()
        self.warm()
        answer, cause = None, "left"
        try:
            async with asyncio.timeout(WALL_TIME * self._settings.image_cpu_seconds):
                answer = await worker.ask(data, target)
            if answer is None:
                ended = await worker.process.wait()
                cause = "cpu" if ended == -signal.SIGPROF else "died"
                return ended
            if "size" not in answer:
                raise InvalidImage(answer["error"], code=answer.get("code"))
            width, height = answer["size"]
            return (width, height), worker.pixels((width, height)) if target else b""
        except TimeoutError:
            cause = "busy"
            raise Unavailable("The server is too busy to decode this image.", code="busy", retry_after=1) from None
        finally:
            if answer is None:
                metrics.IMAGE_WORKER_ENDS.labels(cause).inc()
                self._end(started)
                self.warm()
            elif not self._closed:
                worker.free_memory()
                self._idle.append(started)

    async def _take(self) -> asyncio.Task[Worker]:
        while True:
            was_idle = bool(self._idle)
            task = self._idle.pop() if was_idle else self._launch()
            try:
                worker = await asyncio.shield(task)
            except asyncio.CancelledError:  # the client left: the worker is for the next one
                self._idle.append(task)
                raise
            except Unavailable:
                self._workers.discard(task)
                if was_idle:
                    continue
                raise
            if worker.process.returncode is None:
                return task
            self._end(task)

    def _launch(self) -> asyncio.Task[Worker]:
        task = asyncio.create_task(self._start())
        self._workers.add(task)
        return task

    def _end(self, task: asyncio.Task[Worker]) -> None:
        if task in self._workers:  # not by `close` already
            self._workers.remove(task)
            self._kill(task.result())

    def _kill(self, worker: Worker) -> None:
        worker.end()
        reaping = asyncio.create_task(worker.process.wait())
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)

    async def _start(self) -> Worker:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                return await self._spawn()
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            log.error("a process that decodes images does not start: %s", error or type(error).__name__)
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
                stderr=DEVNULL,  # libtiff and others write there what they think of a file
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
                raise EOFError("it has ended")
        except BaseException:
            self._kill(worker)
            raise
        return worker
