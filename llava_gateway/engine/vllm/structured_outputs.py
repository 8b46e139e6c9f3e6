"""Checks whether the engine can hold an answer to a form. The check runs in processes where a bad form does no harm: `grammar_worker`."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from llava_gateway.errors import EngineFailed, InvalidRequest, TooManyRequests, Unavailable
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import StructuredOutput

SCRIPT = Path(__file__).with_name("grammar_worker.py")
WORKERS = 2
"""Worker processes that check forms at the same time."""
MAX_WAITING = 32
"""Forms that wait for a worker. Each takes a fraction of a second at most, so the last one waits for some seconds."""
TIMEOUT = 20
"""Seconds that a check may take. On a busy machine a fraction of a CPU second may take long."""
MAX_VERDICTS = 1024
"""Verdicts that are remembered."""
MAX_VERDICT_LENGTH = 300
"""The longest verdict, in characters."""


class GrammarChecker:
    """Has worker processes check forms, and remembers their verdicts.

    A worker starts with the first form, and again after a form has ended it. Used from one event loop.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._idle: list[asyncio.Task[Process]] = []
        """Workers without a form. The tasks start them, so some may be starting still."""
        self._alive: set[Process] = set()
        self._slots = asyncio.Semaphore(WORKERS)
        self._waiting = 0
        self._verdicts: dict[bytes, str] = {}
        """By the digest of the form, because a form may have 64 KiB, and takes more in memory. An empty verdict: the form is good."""

    async def check(self, structured_output: StructuredOutput) -> None:
        """Return if the engine can hold an answer to this form.

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
            raise InvalidRequest(f"The engine cannot hold an answer to this form: {verdict}", param=structured_output.param)

    def close(self) -> None:
        """End the workers."""
        for worker in self._alive:
            with suppress(ProcessLookupError):
                worker.kill()

    async def _verdict(self, question: bytes) -> str:
        """Return what is wrong with a form, or an empty text. Raises TooManyRequests, Unavailable or EngineFailed."""
        if self._waiting >= MAX_WAITING:
            raise TooManyRequests("Too many forms of answers wait to be checked. Try again later.", code="queue_full", retry_after=1)
        self._waiting += 1
        try:
            async with self._slots, asyncio.timeout(TIMEOUT):
                for _ in range(2):  # once more if the worker has ended for another reason than the form
                    answer, ended = await self._ask(question)
                    if answer:
                        return str(json.loads(answer))
                    if ended == -signal.SIGPROF:
                        break
                return "it is too complicated, or ambiguous"
        except TimeoutError:
            raise Unavailable("The server is too busy to check this form of an answer.", code="busy", retry_after=1) from None
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
        """Return the task that has started a worker, which lives and has no form. Raises EngineFailed."""
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
            worker.stdin.write(json.dumps(self._tokenizer.to_json()).encode() + b"\n")
            await worker.stdin.drain()
        if not await worker.stdout.readline():
            self._end(worker)
            raise EngineFailed("Structured outputs are not available here.")
        return worker

    def _end(self, worker: Process) -> None:
        self._alive.discard(worker)
        with suppress(ProcessLookupError):
            worker.kill()
