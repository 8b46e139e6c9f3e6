"""Admission: how much may be inside at all, and for how long. Whoever comes beyond is told at once, before the body is read."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llava_gateway.errors import GatewayError, OutOfTime
from llava_gateway.places import Places, full
from llava_gateway.settings import Settings


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
