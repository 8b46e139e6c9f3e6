"""Slots and threads that clients share fairly, in round-robin order.

However many jobs one client has, a job of another client waits for at most one of these jobs.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class FairSlots:
    """A limited number of slots. Waiting clients get free slots in round-robin order; the jobs of one client run in their order.

    Used from one event loop.
    """

    def __init__(self, slots: int, per_client: int) -> None:
        """`per_client`: the number of slots that one client may hold at once."""
        self._free = slots
        self._per_client = per_client
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Hold a slot within the block, after waiting for it."""
        await self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    async def acquire(self, client: str) -> None:
        """Wait for a slot. The caller must call `release` afterwards, unless this call is cancelled."""
        if self._may_hold(client):
            self._hold(client)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(client, deque())
        queue.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(client)
            else:
                self._forget(client, granted)
            raise

    def release(self, client: str) -> None:
        """Give a slot back, and grant the free slots to waiting clients."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        while (turn := next(filter(self._may_hold, self._waiting), None)) is not None:
            queue = self._waiting.pop(turn)
            granted = queue.popleft()
            if queue:
                self._waiting[turn] = queue  # at the end of the order
            if not granted.cancelled():
                self._hold(turn)
                granted.set_result(None)

    def _forget(self, client: str, granted: asyncio.Future[None]) -> None:
        queue = self._waiting.get(client, deque())
        if granted in queue:
            queue.remove(granted)
        if client in self._waiting and not queue:
            del self._waiting[client]

    def _may_hold(self, client: str) -> bool:
        return self._free > 0 and self._held[client] < self._per_client

    def _hold(self, client: str) -> None:
        self._free -= 1
        self._held[client] += 1


class FairThreads:
    """A pool of threads whose queue serves clients in round-robin order."""

    def __init__(self, threads: int, name: str) -> None:
        self._slots = FairSlots(threads, per_client=threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, client: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return `work(*arguments)`, computed in a thread.

        A running thread cannot be stopped: if this call is cancelled, the slot stays taken until the thread has finished.
        """
        loop = asyncio.get_running_loop()
        await self._slots.acquire(client)
        future = self._pool.submit(work, *arguments)

        def release(_: Any) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._slots.release, client)

        future.add_done_callback(release)
        try:
            return await asyncio.wrap_future(future)
        finally:
            del future  # a failed future holds this frame by its traceback: the cycle would keep the arguments until a garbage collection

    def close(self) -> None:
        """Cancel the jobs that have not started. Does not wait for the running ones."""
        self._pool.shutdown(wait=False, cancel_futures=True)
