"""Where windows are kept: in this process."""

import time
from collections.abc import Sequence
from typing import Protocol

from llava_gateway.auth.sliding_window import MINUTE, Change, Outcome, Window


class Counts(Protocol):
    """Windows by the name of their place. Used from one event loop."""

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """Raises Unavailable, after which it is not known whether the changes were made."""

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """Of what has been used already. Cancelling it leaves nothing undone. Raises nothing; the outcomes are missing if it failed."""

    async def close(self) -> None: ...


class MemoryCounts:
    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._sweep_at = 0

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        now = time.monotonic_ns() // 1000
        if now >= self._sweep_at:
            self._windows = {place: window for place, window in self._windows.items() if not window.is_empty(now)}
            self._sweep_at = now + MINUTE
        return [self._window(place).change(now, change) for place, change in changes]

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        return await self.change(changes)

    async def close(self) -> None:
        pass

    def _window(self, place: str) -> Window:
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window()
        return window
