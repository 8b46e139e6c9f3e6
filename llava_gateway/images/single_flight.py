"""Deduplication of concurrent calls: callers with the same key share one task."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs at most one task for each key.

    A caller that asks for a key in progress gets the result of the running task, or its error. A task is cancelled when its last caller is
    cancelled. Used from one event loop.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._waiting: dict[str, int] = {}

    async def do(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the running task for `key`, or start `work()` as that task."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            self._waiting[key] = 0
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if task.done() or not self._waiting[key]:
                    del self._tasks[key], self._waiting[key]
                    task.cancel()

    def __contains__(self, key: str) -> bool:
        """Whether a task for `key` is in progress."""
        return key in self._tasks
