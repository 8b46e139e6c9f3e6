"""Whether the engine can hold an answer to a form, found out where a bad one does no harm (see `grammar_worker`)."""

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
MAX_WAITING = 32
"""Forms that wait for a worker. Each takes a fraction of a second at most, so that is some seconds."""
TIMEOUT = 20
"""Seconds of wall time, for a machine so busy that a fraction of a CPU second takes long."""
REMEMBERED = 1024
MAX_VERDICT = 300
"""Characters."""


class GrammarChecker:
    """Asks worker processes, which start with the first forms and again after one that ended them. Verdicts are remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._idle: list[asyncio.Task[Process]] = []  # started, or just starting
        self._alive: set[Process] = set()
        self._places = asyncio.Semaphore(WORKERS)
        self._waiting = 0
        self._verdicts: dict[bytes, str] = {}
        """By digest: forms are 64 KiB long, and more in memory."""

    async def check(self, structured_output: StructuredOutput) -> None:
        """Raises InvalidRequest, blaming `structure.param`; TooManyRequests or Unavailable if there is no telling now."""
        spec = json.dumps(structured_output.spec) if structured_output.kind == "choice" else structured_output.spec
        question = json.dumps({"kind": structured_output.kind, "spec": spec}).encode() + b"\n"
        digest = blake3(question).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None:
            verdict = self._verdicts[digest] = (await self._wait(question))[:MAX_VERDICT]
            if len(self._verdicts) > REMEMBERED:
                del self._verdicts[next(iter(self._verdicts))]
        if verdict:
            raise InvalidRequest(f"The engine cannot hold an answer to this form: {verdict}", param=structured_output.param)

    def close(self) -> None:
        for worker in self._alive:
            with suppress(ProcessLookupError):
                worker.kill()

    async def _wait(self, question: bytes) -> str:
        if self._waiting >= MAX_WAITING:
            raise TooManyRequests("Too many forms of answers wait to be checked. Try again later.", code="queue_full", retry_after=1)
        self._waiting += 1
        try:
            async with self._places, asyncio.timeout(TIMEOUT):
                for _ in range(2):  # once more if something else than the form has ended the worker
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
        """A worker's answer; or none, and how the worker ended."""
        started = await self._worker()
        worker = started.result()
        assert worker.stdin
        assert worker.stdout
        answer = b""
        try:
            with suppress(OSError, RuntimeError):  # uvloop's way to say that the pipe is closed
                worker.stdin.write(question)
                answer = await worker.stdout.readline()
        finally:
            if answer:
                self._idle.append(started)
            else:  # it has ended; or the client left, and the worker's answer would be nobody's
                self._end(worker)
        return answer, 0 if answer else await worker.wait()

    async def _worker(self) -> asyncio.Task[Process]:
        while True:
            starting = self._idle.pop() if self._idle else asyncio.create_task(self._start())
            try:
                worker = await asyncio.shield(starting)
            except asyncio.CancelledError:  # the client left: the worker is for the next one
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
