"""Admission: how much may be inside at all, and for how long. Whoever comes beyond is told at once, before the body is read."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llava_gateway.errors import GatewayError, OutOfTime, TooManyRequests
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


class Admission:
    """Used from one event loop."""

    def __init__(self, settings: Settings, places: Sequence[Places]) -> None:
        """`places`: each model's. Which one a request asks for is known once its body is read."""
        self.max_inside = (settings.max_running + settings.max_queued) * len(places)
        self.request_timeout = settings.request_timeout
        self.inside = 0
        self._places = places
        self._timers: set[asyncio.Timeout] = set()
        self._closed: GatewayError | None = None
        self._cut: GatewayError | None = None

    @property
    def running(self) -> int:
        """Requests that hold a place at an engine."""
        return sum(places.running for places in self._places)

    @property
    def queued(self) -> int:
        """Requests that wait for one."""
        return sum(places.queued for places in self._places)

    def close(self, why: GatewayError) -> None:
        """Let nobody in any more, for this reason. Those inside go on."""
        self._closed = why

    def cut(self, why: GatewayError) -> None:
        """End all that are inside, for this reason."""
        self._cut = why
        for timer in self._timers:
            timer.reschedule(asyncio.get_running_loop().time())

    def check_open(self) -> None:
        """Whether one more request would be let in, and find a place at an engine or in its queue. Raises GatewayError."""
        if self._closed:
            raise self._closed
        if self.inside >= self.max_inside or not any(places.are_left for places in self._places):
            raise full()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """A request, from before its body is read until its answer has left. Does not wait. Raises GatewayError at once, and within when
        its time is up or when it is cut off."""
        self.check_open()
        self.inside += 1
        timer = asyncio.timeout(self.request_timeout)
        try:
            async with timer:
                self._timers.add(timer)
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            late = OutOfTime(f"The answer was not whole after {self.request_timeout:g} s, the longest that a request may take.")
            raise self._cut or late from None
        finally:
            self._timers.discard(timer)
            self.inside -= 1
