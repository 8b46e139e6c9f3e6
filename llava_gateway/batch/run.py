"""The run of a batch: sends the lines that have no answer, several at once, and writes each answer as soon as it arrives."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from llava_gateway.batch.lines import BatchError, LineSource, RequestLine
from llava_gateway.batch.output import OutputFile
from llava_gateway.batch.sender import RequestSender

SYNC_INTERVAL = 5.0
"""Seconds between two syncs: a power failure loses at most the answers of this time."""


@dataclass
class BatchStats:
    """Counts of a run so far."""

    start: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error_codes: Counter[str] = field(default_factory=Counter)
    """The number of errors by code."""
    first_messages: dict[str, str] = field(default_factory=dict)
    """The first error message of each code, with its custom_id."""

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.start

    def add(self, entry: dict[str, Any]) -> None:
        """Count a line of output."""
        if error := entry["error"]:
            self.failed += 1
            self.error_codes[error["code"]] += 1
            self.first_messages.setdefault(error["code"], f"{entry['custom_id']}: {error['message']}")
            return
        self.done += 1
        usage = entry["response"]["body"].get("usage")
        self.prompt_tokens += _tokens(usage, "prompt_tokens")
        self.completion_tokens += _tokens(usage, "completion_tokens")


async def run(
    sender: RequestSender,
    clients: Sequence[httpx.AsyncClient],
    source: LineSource,
    output: OutputFile,
    on_answer: Callable[[BatchStats], None],
) -> BatchStats:
    """Send the unanswered lines and return when every line has an answer or an error.

    `clients`: each sends one line at a time. Raises BatchError if the input or the output fails; the answers that were written stay.
    """
    stats = BatchStats()
    lines = (line for line in source if isinstance(line, RequestLine) and line.custom_id not in output.answered)

    async def send_lines(client: httpx.AsyncClient) -> None:
        for line in lines:
            entry = await sender.send(client, line)
            output.append(line, entry)
            stats.add(entry)
            on_answer(stats)

    async def sync_regularly() -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL)
            await asyncio.to_thread(output.sync)

    try:
        async with asyncio.TaskGroup() as group:
            syncing = group.create_task(sync_regularly())
            async with asyncio.TaskGroup() as workers:
                for client in clients:
                    workers.create_task(send_lines(client))
            syncing.cancel()
    except* BatchError as failures:
        raise _first(failures) from None
    await asyncio.to_thread(output.sync)
    return stats


def _tokens(usage: Any, name: str) -> int:
    """Return a token count of the server's `usage`, or 0 if the server does not report it."""
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def _first(failures: BaseExceptionGroup[BatchError]) -> BatchError:
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, BatchError)
    return first
