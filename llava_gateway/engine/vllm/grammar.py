"""Whether the engine can hold an answer to a form, found out where a bad one does no harm (see `grammar_worker`)."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

from llava_gateway.chat import Structure
from llava_gateway.errors import EngineFailed, InvalidRequest

WORKER = Path(__file__).with_name("grammar_worker.py")
TIMEOUT = 20
"""Seconds of wall time, for a machine so busy that a fraction of a CPU second takes long."""
KNOWN = 1024


class GrammarChecker:
    """Asks a worker process, which starts with the first form and again after one that ended it. Forms that were good are remembered."""

    def __init__(self) -> None:
        self._worker: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._good: dict[Structure, None] = {}

    async def check(self, structure: Structure) -> None:
        """Raises InvalidRequest, blaming `structure.param`."""
        if structure in self._good:
            return
        spec = json.dumps(structure.spec) if structure.kind == "choice" else structure.spec
        line = json.dumps({"kind": structure.kind, "spec": spec}).encode() + b"\n"
        async with self._one_at_a_time:
            try:
                answer = await asyncio.wait_for(self._ask(line), TIMEOUT)
            except BaseException:  # a timeout, or the client left: the worker's answer is nobody's now
                self.close()
                raise
        if error := json.loads(answer) if answer else "it is too complicated":
            raise InvalidRequest(f"The engine cannot hold an answer to this form: {error[:300]}", param=structure.param)
        if len(self._good) >= KNOWN:
            self._good.pop(next(iter(self._good)))
        self._good[structure] = None

    def close(self) -> None:
        """End the worker. The next form starts another."""
        if self._worker is not None:
            with suppress(ProcessLookupError):
                self._worker.kill()
            self._worker = None

    async def _ask(self, line: bytes) -> bytes:
        """The worker's answer; nothing if the form has ended it."""
        worker = self._worker = self._worker or await self._start()
        assert worker.stdin
        assert worker.stdout
        with suppress(ConnectionError):
            worker.stdin.write(line)
            await worker.stdin.drain()
        answer = await worker.stdout.readline()
        if not answer:
            self._worker = None
            await worker.wait()
        return answer

    async def _start(self) -> Process:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(WORKER), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        assert worker.stdout
        if not await worker.stdout.readline():
            raise EngineFailed("Structured outputs are not available here.")
        return worker
