"""Slots and threads that clients share in turn: however many jobs one of them brings, the next one waits for one of those at most."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class FairSlots:
    """A number of slots. Clients that wait get the next free one in turn, and each its own jobs in their order. For one event loop."""

    def __init__(self, slots: int, per_client: int) -> None:
        """`per_client`: slots that one client may hold at once."""
        self._free = slots
        self._per_client = per_client
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        await self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    async def acquire(self, client: str) -> None:
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
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        while (turn := next(filter(self._may_hold, self._waiting), None)) is not None:
            queue = self._waiting.pop(turn)
            granted = queue.popleft()
            if queue:
                self._waiting[turn] = queue  # behind the others
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
    """A pool of threads whose queue takes clients in turn."""

    def __init__(self, threads: int, name: str) -> None:
        self._slots = FairSlots(threads, per_client=threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, client: str, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)` in a thread. If nobody waits for it any longer it still holds its slot until the thread is free."""
        loop = asyncio.get_running_loop()
        await self._slots.acquire(client)
        future = self._pool.submit(work, *arguments)

        def release(_: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._slots.release, client)

        future.add_done_callback(release)
        try:
            return await asyncio.wrap_future(future)
        finally:
            del future  # a failed future holds this frame by its traceback: the cycle would keep the arguments until a garbage collection

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
