"""The same work on several things at once, of which all are wanted."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


async def together(work: Callable[[A], Awaitable[T]], items: Iterable[A], limit: int | None = None) -> list[T]:
    """The results, in order; at most `limit` are worked on at once. If one fails, its error; the others are then cancelled, and have
    ended. Each begins in a turn of the event loop of its own, so that a hundred of them do not hold it."""
    places = asyncio.Semaphore(limit) if limit else None

    async def one(item: A) -> T:
        if places is None:
            return await work(item)
        async with places:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[T]] = []
            for item in items:
                if tasks:
                    await asyncio.sleep(0)
                tasks.append(group.create_task(one(item)))
    except ExceptionGroup as failures:
        failures.__traceback__ = None  # whose frames hold it in turn before Python 3.13, and the items' memory with it
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
