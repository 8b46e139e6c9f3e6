"""Pools of processes that decode files whose cost is not known in advance (see `worker_process`). Each can be killed at any time."""

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

from prometheus_client import Counter

from llava_gateway.errors import InvalidRequest, Unavailable
from llava_gateway.images.fair_queue import FairSlots

log = logging.getLogger(__name__)

PIECE = 1 << 20
"""The number of bytes that are copied before the event loop continues with other work."""
KEPT_MEMORY = 1 << 20
"""The shared memory that an idle worker keeps, in bytes. It is enough for most images and their pixels."""
START_TIMEOUT = 30
"""The longest start of a worker, in seconds. On an idle machine a start takes a tenth of a second."""
WALL_TIME = 6
"""The longest time of a file on a busy machine, as a multiple of its CPU time."""
ATTEMPTS = 2
"""The number of attempts at a file. A second one follows if the worker may have died for another reason than the file."""
IMPORTS = (*filter(None, sys.path), str(Path(__file__).parents[2]))
"""The import path of a worker: that of this process, and this package's own folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The configuration of a pool: the files that its workers decode, and the limits of one file."""

    noun: str
    """The kind of file, for messages, such as `image`."""
    error: type[InvalidRequest]
    """Raised for a file that cannot be decoded."""
    advice: str
    """Completes the message about a file that takes too much CPU time. It says what the client can send instead."""
    module: str
    """The worker's module. It calls `worker_process.run`."""
    max_workers: int
    """The upper bound of processes. One client may have half of them."""
    memory: int
    """The address space of a worker, in bytes."""
    cpu_seconds: float
    limits: tuple[int, ...]
    """Further limits, which the module knows."""
    ends: Counter
    """Counts the workers that end before their file is decoded, by cause."""


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

    async def read_pixels(self, length: int) -> bytearray:
        """Return the pixels of the decoded file. `length`: their number of bytes."""
        pixels = bytearray(length)
        for at in range(0, length, PIECE):
            os.preadv(self.shared, [memoryview(pixels)[at : at + PIECE]], at)
            if at + PIECE < length:
                await asyncio.sleep(0)
        return pixels

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

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._slots = FairSlots(config.max_workers, per_client=config.max_workers // 2)
        self._workers: set[asyncio.Task[Worker]] = set()  # running or starting
        self._idle: list[asyncio.Task[Worker]] = []  # the workers without a file
        self._reaping: set[asyncio.Task[int]] = set()
        self._closed = False

    @property
    def alive(self) -> int:
        """The number of workers that run or start."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """The number of files that wait for a worker."""
        return self._slots.waiting

    def warm(self) -> None:
        """Start a worker if none is idle and the limit allows one more."""
        if not self._closed and not self._idle and len(self._workers) < self._config.max_workers:
            self._idle.append(self._launch())

    async def decode(self, data: bytes, target: dict[str, Any] | None, client: str) -> tuple[dict[str, Any], bytearray]:
        """Return the worker's response about a file, and the pixels.

        `target`: the wanted form, which the worker's module knows. None: the file is only opened, and there are no pixels; the next call
        with the same `data` probably finds the file open. Raises the configured error, and Unavailable.
        """
        config = self._config
        async with self._slots.slot(client):
            for _ in range(ATTEMPTS):
                result = await self._attempt(data, target)
                if not isinstance(result, int):
                    return result
                if result == -signal.SIGPROF:
                    raise config.error(f"The {config.noun} takes more than {config.cpu_seconds:g} seconds to decode; {config.advice}.")
        raise config.error(f"The {config.noun} is damaged or cut short.")

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

    async def _attempt(self, data: bytes, target: dict[str, Any] | None) -> tuple[dict[str, Any], bytearray] | int:
        """Return the response and the pixels, or the exit status of a worker that has died.

        If this call is cancelled, the worker is killed.
        """
        started = await self._acquire_worker()
        worker = started.result()
        self.warm()
        response, cause = None, "left"
        try:
            async with asyncio.timeout(WALL_TIME * self._config.cpu_seconds):
                response = await worker.ask(data, target)
            if response is None:
                status = await worker.process.wait()
                cause = "cpu" if status == -signal.SIGPROF else "died"
                return status
            if "error" in response:
                raise self._config.error(response["error"], code=response["code"])
            return response, await worker.read_pixels(response["length"])
        except TimeoutError:
            cause = "busy"
            raise Unavailable(f"The server is too busy to decode this {self._config.noun}.", code="busy", retry_after=1) from None
        finally:
            if response is None:
                self._config.ends.labels(cause).inc()
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
            except asyncio.CancelledError:  # the client has disconnected; the next file gets the worker
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
            noun = self._config.noun
            log.error("a worker process for %ss does not start: %s", noun, error or type(error).__name__)
            raise Unavailable(f"{noun.capitalize()}s of this kind cannot be decoded now.", code="busy", retry_after=1) from error

    async def _spawn(self) -> Worker:
        config = self._config
        shared = os.memfd_create(config.noun)
        arguments = map(str, (shared, config.memory, config.cpu_seconds, *config.limits))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-S", "-m", config.module, *arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,  # libtiff, FFmpeg and other libraries write their warnings about a file there
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
