"""A load test in a closed loop: each of several clients sends its next request when its last request is answered."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llava_gateway.loadtest.client import Connection, Outcome, Target


@dataclass
class Result:
    """The outcomes of a load test."""

    concurrency: int
    """The number of clients."""
    seconds: float = 0.0
    """The duration of the whole test."""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def answered(self) -> list[Outcome]:
        """The outcomes of requests that succeeded."""
        return [outcome for outcome in self.outcomes if not outcome.error]

    @property
    def errors(self) -> list[str]:
        """The messages of requests that failed."""
        return [outcome.error for outcome in self.outcomes if outcome.error]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
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
    """Send `requests` requests in all with `concurrency` clients.

    `path`: relative to the API's URL. `bodies`: must not end. `deadline`: no request starts later; on the clock of time.monotonic.
    Raises nothing: a failure is an outcome with an error.
    """
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
