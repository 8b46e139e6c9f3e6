"""Measures how long the event loop is held. Whatever runs on it for long lets every other request wait."""

import asyncio
import time

from llava_gateway.observability import metrics

INTERVAL = 0.01


class LoopMonitor:
    """Observes one event loop from `start` to `stop`. Costs a few microseconds a hundred times a second."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """To be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._schedule()

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._due = self._loop.time() + INTERVAL
        self._cpu_time = time.thread_time()
        self._timer = self._loop.call_at(self._due, self._observe)

    def _observe(self) -> None:
        delay = max(self._loop.time() - self._due, 0.0)
        metrics.LOOP_DELAY.observe(delay)
        metrics.LOOP_STALL.observe(min(delay, time.thread_time() - self._cpu_time))
        self._schedule()
