"""Places at a model's engine: how much it works on at once, and how much may wait for that. Whoever comes beyond is told so at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llava_gateway.errors import TooManyRequests
from llava_gateway.settings import Settings


class Places:
    """First come, first served. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.max_running, self.max_queued = settings.max_running, settings.max_queued
        self.max_running_tokens, self.max_queued_tokens = settings.max_running_tokens, settings.max_queued_tokens
        self.queue_timeout = settings.queue_timeout
        self.running = self.running_tokens = self.queued_tokens = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def are_left(self) -> bool:
        """Whether one more request would find one, or might wait for one."""
        return not self._is_queue_full() or (not self._queue and self._fits(1))

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """A place at the engine for a prompt of so many tokens; waits for it in the queue. TooManyRequests if that is full or slow."""
        if not self._queue and self._fits(tokens):
            self._take(tokens)
        elif not self._is_queue_full():
            await self._wait(tokens)
        else:
            raise full()
        try:
            yield
        finally:
            self._release(tokens)

    def _is_queue_full(self) -> bool:
        return self.queued >= self.max_queued or self.queued_tokens >= self.max_queued_tokens

    def _fits(self, tokens: int) -> bool:
        """One prompt runs, however long it is: it fits the model's context."""
        return self.running == 0 or (self.running < self.max_running and self.running_tokens + tokens <= self.max_running_tokens)

    def _take(self, tokens: int) -> None:
        self.running += 1
        self.running_tokens += tokens

    async def _wait(self, tokens: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((place, tokens))
        self.queued_tokens += tokens
        try:
            async with asyncio.timeout(self.queue_timeout):
                await place
        except (asyncio.CancelledError, TimeoutError) as error:
            if place.cancelled():
                if (place, tokens) in self._queue:
                    self._queue.remove((place, tokens))
                    self.queued_tokens -= tokens
                    self._hand_out()  # whoever waited behind it may fit
            else:  # handed over just as its client left
                self._release(tokens)
            if isinstance(error, TimeoutError):
                raise TooManyRequests(
                    f"The server is busy: this request has waited {self.queue_timeout:g} s for its turn. Try again later.",
                    code="queue_timeout",
                    retry_after=5,
                ) from None
            raise

    def _release(self, tokens: int) -> None:
        self.running -= 1
        self.running_tokens -= tokens
        self._hand_out()

    def _hand_out(self) -> None:
        """Places to those who wait longest, as long as they fit."""
        while self._queue and self._fits(self._queue[0][1]):
            place, tokens = self._queue.popleft()
            self.queued_tokens -= tokens
            if not place.done():
                self._take(tokens)
                place.set_result(None)


def full() -> TooManyRequests:
    return TooManyRequests("The server is busy and its queue is full. Try again later.", code="queue_full", retry_after=1)
