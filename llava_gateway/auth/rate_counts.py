"""The storage of windows: its interface, and the storage in this process."""

import time
from collections.abc import Sequence
from typing import Protocol

from llava_gateway.auth.sliding_window import MINUTE, Change, Outcome, Window


class Counts(Protocol):
    """Windows by name. Used from one event loop."""

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """Change the windows of these names, and return the outcomes in order.

        Raises Unavailable. It is not known then whether the changes were made.
        """

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        """Like `change`, for tokens that have been used already.

        The changes are made even if the caller is cancelled. Returns an empty list if they could not be made; raises nothing.
        """

    async def close(self) -> None:
        """Close the connections."""


class MemoryCounts:
    """Windows in the memory of this process. Empty windows are dropped once a minute."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._sweep_at = 0

    async def change(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        now = time.monotonic_ns() // 1000
        if now >= self._sweep_at:
            self._windows = {name: window for name, window in self._windows.items() if not window.is_empty(now)}
            self._sweep_at = now + MINUTE
        return [self._window(name).change(now, change) for name, change in changes]

    async def settle(self, changes: Sequence[tuple[str, Change]]) -> list[Outcome]:
        return await self.change(changes)

    async def close(self) -> None:
        pass

    def _window(self, name: str) -> Window:
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window()
        return window
