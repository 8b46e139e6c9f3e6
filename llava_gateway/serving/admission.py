"""Admission: how many requests are in flight, and how many run at each engine.

A request beyond a limit is refused at once, before its body is read.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llava_gateway.errors import GatewayError, RequestTimeout, TooManyRequests
from llava_gateway.settings import Settings


class RequestQueue:
    """The slots of one engine, and the requests that wait for a slot: first come, first served. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.max_running, self.max_queued = settings.max_running, settings.max_queued
        self.max_running_tokens, self.max_queued_tokens = settings.max_running_tokens, settings.max_queued_tokens
        self.queue_timeout = settings.queue_timeout
        self.running = self.running_tokens = self.queued_tokens = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def accepts_more(self) -> bool:
        """Whether one more request would get a slot or could wait for one."""
        return not self._is_full() or (not self._queue and self._fits(1))

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Hold a slot for a prompt of `tokens` tokens within the block, after waiting for it.

        Raises TooManyRequests if the queue is full, or if no slot is free within `queue_timeout` seconds.
        """
        if not self._queue and self._fits(tokens):
            self._acquire(tokens)
        elif not self._is_full():
            await self._wait(tokens)
        else:
            raise queue_full()
        try:
            yield
        finally:
            self._release(tokens)

    def _is_full(self) -> bool:
        return self.queued >= self.max_queued or self.queued_tokens >= self.max_queued_tokens

    def _fits(self, tokens: int) -> bool:
        """A single prompt always fits, however long it is: its length is checked against the model's context."""
        return self.running == 0 or (self.running < self.max_running and self.running_tokens + tokens <= self.max_running_tokens)

    def _acquire(self, tokens: int) -> None:
        self.running += 1
        self.running_tokens += tokens

    async def _wait(self, tokens: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((granted, tokens))
        self.queued_tokens += tokens
        try:
            async with asyncio.timeout(self.queue_timeout):
                await granted
        except (asyncio.CancelledError, TimeoutError) as error:
            if granted.cancelled():
                if (granted, tokens) in self._queue:
                    self._queue.remove((granted, tokens))
                    self.queued_tokens -= tokens
                    self._grant()  # the next request may fit
            else:  # the slot was granted at the moment of the cancellation
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
        self._grant()

    def _grant(self) -> None:
        """Give slots to the requests that have waited longest, as long as they fit."""
        while self._queue and self._fits(self._queue[0][1]):
            granted, tokens = self._queue.popleft()
            self.queued_tokens -= tokens
            if not granted.done():
                self._acquire(tokens)
                granted.set_result(None)


class Admission:
    """Counts all requests in flight, and bounds their number and their time. Used from one event loop."""

    def __init__(self, settings: Settings, queues: Sequence[RequestQueue]) -> None:
        """`queues`: one for each model. A request's model is known only after its body is read, so the limits are added up."""
        self.max_in_flight = (settings.max_running + settings.max_queued) * len(queues)
        self.request_timeout = settings.request_timeout
        self.in_flight = 0
        self._queues = queues
        self._timers: set[asyncio.Timeout] = set()
        self._closed: GatewayError | None = None
        self._abort_reason: GatewayError | None = None

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return sum(queue.running for queue in self._queues)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return sum(queue.queued for queue in self._queues)

    def close(self, reason: GatewayError) -> None:
        """Refuse new requests with this error. Requests in flight go on."""
        self._closed = reason

    def abort_all(self, reason: GatewayError) -> None:
        """End all requests in flight with this error."""
        self._abort_reason = reason
        for timer in self._timers:
            timer.reschedule(asyncio.get_running_loop().time())

    def check_open(self) -> None:
        """Raise GatewayError if a new request would be refused."""
        if self._closed:
            raise self._closed
        if self.in_flight >= self.max_in_flight or not any(queue.accepts_more for queue in self._queues):
            raise queue_full()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Count a request as in flight within the block: from before its body is read until its answer is sent.

        Does not wait. Raises GatewayError at once if admission is closed or full, and within the block when the request's time is up
        (RequestTimeout) or when it is aborted.
        """
        self.check_open()
        self.in_flight += 1
        timer = asyncio.timeout(self.request_timeout)
        try:
            async with timer:
                self._timers.add(timer)
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            late = RequestTimeout(f"The answer was not whole after {self.request_timeout:g} s, the longest that a request may take.")
            raise self._abort_reason or late from None
        finally:
            self._timers.discard(timer)
            self.in_flight -= 1


def queue_full() -> TooManyRequests:
    """Return the error for a request beyond the limits."""
    return TooManyRequests("The server is busy and its queue is full. Try again later.", code="queue_full", retry_after=1)
