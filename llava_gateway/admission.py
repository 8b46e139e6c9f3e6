"""Admission is two numbers: how many requests run, and how many may wait for a place. Whoever comes beyond both is told so at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llava_gateway.errors import TooManyRequests


class Admission:
    """First come, first served. Used from one event loop."""

    def __init__(self, max_running: int, max_queued: int) -> None:
        self.max_running = max_running
        self.max_queued = max_queued
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place for one request; waits for it in the queue. TooManyRequests when the queue is full."""
        if self.running < self.max_running:
            self.running += 1
        elif self.queued < self.max_queued:
            await self._wait()
        else:
            raise TooManyRequests("The server is busy and its queue is full. Try again later.", code="queue_full", retry_after=1)
        try:
            yield
        finally:
            self._release()

    async def _wait(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                if place in self._queue:
                    self._queue.remove(place)
            else:  # handed over just as its client left
                self._release()
            raise

    def _release(self) -> None:
        """Hand the place to whoever waits longest, or free it."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
