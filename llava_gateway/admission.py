"""Admission: how much may be inside at all, how much of it the engine works on, and how much may wait for that. Whoever comes beyond is
told so at once; `enter` knows it before a byte of the body is read."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from llava_gateway.errors import GatewayError, TooManyRequests
from llava_gateway.settings import Settings


class Admission:
    """First come, first served. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.max_running, self.max_queued = settings.max_running, settings.max_queued
        self.max_running_tokens, self.max_queued_tokens = settings.max_running_tokens, settings.max_queued_tokens
        self.queue_timeout = settings.queue_timeout
        self.running = self.running_tokens = self.queued_tokens = self.inside = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._closed: GatewayError | None = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    def close(self, why: GatewayError) -> None:
        """Let nobody in any more, for this reason. Those inside go on."""
        self._closed = why

    def check_open(self) -> None:
        """Whether one more request would be let in. Raises GatewayError."""
        if self._closed:
            raise self._closed
        if self.inside >= self.max_running + self.max_queued or self.queued_tokens >= self.max_queued_tokens:
            raise _full()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """A request, from before its body is read until its answer has left. Does not wait."""
        self.check_open()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """A place at the engine for a prompt of so many tokens; waits for it in the queue. TooManyRequests if that is full or slow."""
        if not self._queue and self._fits(tokens):
            self._take(tokens)
        elif self.queued < self.max_queued and self.queued_tokens < self.max_queued_tokens:
            await self._wait(tokens)
        else:
            raise _full()
        try:
            yield
        finally:
            self._release(tokens)

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


def _full() -> TooManyRequests:
    return TooManyRequests("The server is busy and its queue is full. Try again later.", code="queue_full", retry_after=1)
