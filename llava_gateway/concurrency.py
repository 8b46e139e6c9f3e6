"""Ending a task and waiting until it has ended, whatever happens meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel it, and return when it has done what it does then; what a request has used is known only afterwards. Who waits here and is
    cancelled once more, as servers do with requests whose clients have left, is so afterwards."""
    task.cancel()
    again: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            again = error
    if again:
        raise again


A = TypeVar("A")
T = TypeVar("T")


async def gather_limited(work: Callable[[A], Awaitable[T]], items: Iterable[A], limit: int | None = None) -> list[T]:
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
