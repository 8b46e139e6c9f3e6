"""Measures how long the event loop is blocked. Code that runs on the loop for long delays every other request."""

import asyncio
import time

from llava_gateway.observability import metrics

INTERVAL = 0.01
"""Seconds between two measurements."""


class LoopMonitor:
    """Measures the delay of one event loop from `start` to `stop`. A measurement takes a few microseconds."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start measuring the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._schedule()

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._due = self._loop.time() + INTERVAL
        self._cpu_time = time.thread_time()
        self._timer = self._loop.call_at(self._due, self._observe)

    def _observe(self) -> None:
        """Record how late this timer runs. A stall is the part in which the loop's own thread used the CPU."""
        delay = max(self._loop.time() - self._due, 0.0)
        metrics.LOOP_DELAY.observe(delay)
        metrics.LOOP_STALL.observe(min(delay, time.thread_time() - self._cpu_time))
        self._schedule()
