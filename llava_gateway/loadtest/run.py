"""A closed loop: so many clients, each sending its next request when it has its answer."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llava_gateway.loadtest.client import Connection, Outcome, Target


@dataclass
class Result:
    """What one load came to."""

    concurrency: int
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]

    @property
    def errors(self) -> list[str]:
        return [outcome.error for outcome in self.outcomes if outcome.error]

    @property
    def tokens(self) -> int:
        return sum(outcome.completion_tokens for outcome in self.answered)


async def load(
    target: Target,
    path: str,
    bodies: Iterator[bytes],
    concurrency: int,
    requests: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    deadline: float = float("inf"),
) -> Result:
    """`requests` in all, by `concurrency` clients; none is begun after `deadline`, by time.monotonic. Raises nothing: what fails is an
    outcome."""
    result = Result(concurrency)
    left = requests

    async def client() -> None:
        nonlocal left
        connection: Connection | None = None
        try:
            while left > 0 and time.monotonic() < deadline:
                left -= 1
                body = next(bodies)
                try:
                    if connection is None or not connection.is_open:
                        connection = await target.connect()
                    outcome = await connection.ask(target.head(path, len(body)) + body)
                except OSError as error:
                    outcome = Outcome(error=f"no connection: {error.strerror or error}")
                    connection = None
                result.outcomes.append(outcome)
                on_outcome(outcome)
        finally:
            if connection:
                connection.close()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, requests)):
            group.create_task(client())
    result.seconds = time.perf_counter() - start
    return result
