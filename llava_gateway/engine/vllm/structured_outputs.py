"""Answer formats: how their objects end, and whether the engine can hold an answer to them.

The check runs in processes of its own, where a bad format does no harm: see `grammar_worker`.
"""

import asyncio
import dataclasses
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from llava_gateway.engine.closed_schema import ANY_OBJECT, close_objects
from llava_gateway.errors import EngineFailed, InvalidRequest, TooManyRequests, Unavailable
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import StructuredOutput

SCRIPT = Path(__file__).with_name("grammar_worker.py")
WORKERS = 2
"""Worker processes that check formats at the same time."""
MAX_WAITING = 32
"""Forms that wait for a worker. Each takes a fraction of a second at most, so the last one waits for some seconds."""
TIMEOUT = 20
"""Seconds that a check may take. On a busy machine a fraction of a CPU second may take long."""
MAX_VERDICTS = 1024
"""Verdicts that are remembered."""
MAX_VERDICT_LENGTH = 300
"""The longest verdict, in characters."""


@lru_cache(maxsize=64)  # a format is closed for its check and again for its request, and a long one takes 10 ms of the event loop
def close_format(structured_output: StructuredOutput) -> StructuredOutput:
    """Return a format of which no object may have further keys without end. See `closed_schema`. Raises InvalidRequest."""
    if structured_output.kind == "json_object":
        return dataclasses.replace(structured_output, kind="json", spec=ANY_OBJECT)
    if structured_output.kind == "json" and isinstance(structured_output.spec, str):
        try:
            return dataclasses.replace(structured_output, spec=close_objects(structured_output.spec))
        except ValueError as error:
            raise _refusal(structured_output, str(error)) from None
    return structured_output


class GrammarChecker:
    """Has worker processes check formats, and remembers their verdicts.

    A worker starts with the first format, and again after a format has ended it. Used from one event loop.
    """

    def __init__(self, tokenizer: Tokenizer, *, any_whitespace: bool = False) -> None:
        """`any_whitespace`: whether the engine allows optional white space in JSON."""
        self._tokenizer = tokenizer
        self._any_whitespace = any_whitespace
        self._idle: list[asyncio.Task[Process]] = []
        """Workers without a format. The tasks start them, so some may be starting still."""
        self._alive: set[Process] = set()
        self._slots = asyncio.Semaphore(WORKERS)
        self._waiting = 0
        self._verdicts: dict[bytes, str] = {}
        """By the digest of the format, because a format may have 64 KiB, and takes more in memory. An empty verdict: the format is good."""

    async def check(self, structured_output: StructuredOutput) -> None:
        """Return if the engine can hold an answer to this format.

        Raises InvalidRequest for `structured_output.param` if it cannot, TooManyRequests or Unavailable if there is no time to check.
        """
        spec = json.dumps(structured_output.spec) if structured_output.kind == "choice" else structured_output.spec
        question = json.dumps({"kind": structured_output.kind, "spec": spec}).encode() + b"\n"
        digest = blake3(question).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None:
            verdict = self._verdicts[digest] = (await self._verdict(question))[:MAX_VERDICT_LENGTH]
            if len(self._verdicts) > MAX_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]
        if verdict:
            raise _refusal(structured_output, verdict)

    def close(self) -> None:
        """End the workers."""
        for worker in self._alive:
            with suppress(ProcessLookupError):
                worker.kill()

    async def _verdict(self, question: bytes) -> str:
        """Return what is wrong with a format, or an empty text. Raises TooManyRequests, Unavailable or EngineFailed."""
        if self._waiting >= MAX_WAITING:
            raise TooManyRequests("Too many answer formats wait to be checked. Try again later.", code="queue_full", retry_after=1)
        self._waiting += 1
        try:
            async with self._slots, asyncio.timeout(TIMEOUT):
                for _ in range(2):  # once more if the worker has ended for another reason than the format
                    answer, ended = await self._ask(question)
                    if answer:
                        return str(json.loads(answer))
                    if ended == -signal.SIGPROF:
                        break
                return "it is too complicated, or ambiguous"
        except TimeoutError:
            raise Unavailable("The server is too busy to check this format of an answer.", code="busy", retry_after=1) from None
        finally:
            self._waiting -= 1

    async def _ask(self, question: bytes) -> tuple[bytes, int]:
        """Return a worker's answer to a line of input, or no answer and the exit code of the worker."""
        started = await self._worker()
        worker = started.result()
        assert worker.stdin
        assert worker.stdout
        answer = b""
        try:
            with suppress(OSError, RuntimeError):  # uvloop raises RuntimeError if the pipe is closed
                worker.stdin.write(question)
                answer = await worker.stdout.readline()
        finally:
            if answer:
                self._idle.append(started)
            else:  # the worker has ended; or the client left, and the worker's late answer would be read as the next one's
                self._end(worker)
        return answer, 0 if answer else await worker.wait()

    async def _worker(self) -> asyncio.Task[Process]:
        """Return the task that has started a worker, which lives and has no format. Raises EngineFailed."""
        while True:
            starting = self._idle.pop() if self._idle else asyncio.create_task(self._start())
            try:
                worker = await asyncio.shield(starting)
            except asyncio.CancelledError:  # the client left: the next one gets the worker
                self._idle.append(starting)
                raise
            if worker.returncode is None:
                return starting
            self._end(worker)

    async def _start(self) -> Process:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(SCRIPT), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        self._alive.add(worker)
        assert worker.stdin
        assert worker.stdout
        with suppress(OSError, RuntimeError):
            options = {"tokenizer": self._tokenizer.to_json(), "any_whitespace": self._any_whitespace}
            worker.stdin.write(json.dumps(options).encode() + b"\n")
            await worker.stdin.drain()
        if not await worker.stdout.readline():
            self._end(worker)
            raise EngineFailed("Structured outputs are not available here.")
        return worker

    def _end(self, worker: Process) -> None:
        self._alive.discard(worker)
        with suppress(ProcessLookupError):
            worker.kill()


def _refusal(structured_output: StructuredOutput, reason: str) -> InvalidRequest:
    return InvalidRequest(f"The engine cannot hold an answer to this format: {reason}", param=structured_output.param)
