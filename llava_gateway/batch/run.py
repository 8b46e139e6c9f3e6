"""The lines that are left, so many at once, each written down as soon as it is answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from llava_gateway.batch.client import Asker
from llava_gateway.batch.lines import BatchError, Source
from llava_gateway.batch.output import Output

SYNC_INTERVAL = 5.0
"""Seconds of answers that a power failure may take."""


@dataclass
class Tally:
    """What a run has come to so far."""

    start: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """How often each code of an error came."""
    messages: dict[str, str] = field(default_factory=dict)
    """The first message of each code, with its custom_id."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def count(self, entry: dict[str, Any]) -> None:
        """A line of output."""
        if error := entry["error"]:
            self.failed += 1
            self.faults[error["code"]] += 1
            self.messages.setdefault(error["code"], f"{entry['custom_id']}: {error['message']}")
            return
        self.done += 1
        usage = entry["response"]["body"].get("usage")
        self.prompt_tokens += _tokens(usage, "prompt_tokens")
        self.completion_tokens += _tokens(usage, "completion_tokens")


async def run(
    asker: Asker, clients: Sequence[httpx.AsyncClient], source: Source, output: Output, on_tally: Callable[[Tally], None]
) -> Tally:
    """Each of `clients` asks for one line at a time. Returns when every line has its answer or its error. Raises BatchError if the input or
    the output fails; what was written stays."""
    tally = Tally()
    lines = (line for line in source if line.custom_id not in output.answered)

    async def work(client: httpx.AsyncClient) -> None:
        for line in lines:
            entry = await asker.ask(client, line)
            output.append(entry)
            tally.count(entry)
            on_tally(tally)

    async def keep() -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL)
            await asyncio.to_thread(output.sync)

    try:
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(keep())
            async with asyncio.TaskGroup() as workers:
                for client in clients:
                    workers.create_task(work(client))
            keeping.cancel()
    except* BatchError as failures:
        raise _first(failures) from None
    await asyncio.to_thread(output.sync)
    return tally


def _tokens(usage: Any, name: str) -> int:
    """0 if the server does not count them."""
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def _first(failures: BaseExceptionGroup[BatchError]) -> BatchError:
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, BatchError)
    return first
