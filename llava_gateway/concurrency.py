"""Helpers for tasks: cancel a task and wait for its end, and run a bounded number of tasks at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and return when it has ended. Its cleanup is complete then: the usage of a request is known only afterwards.

    A server may cancel the caller, too, when the client has disconnected. This still waits for the task first, and then raises
    CancelledError.
    """
    task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled


A = TypeVar("A")
T = TypeVar("T")


async def gather_limited(work: Callable[[A], Awaitable[T]], items: Iterable[A], limit: int | None = None) -> list[T]:
    """Call `work` with each item in a task of its own, and return the results in order.

    `limit`: the upper bound of calls at the same time; None: no bound. If a call fails, the other calls are cancelled, and its error is
    raised when they have ended. The tasks start in different iterations of the event loop, so that a hundred of them do not block it.
    """
    semaphore = asyncio.Semaphore(limit) if limit else None

    async def one(item: A) -> T:
        if semaphore is None:
            return await work(item)
        async with semaphore:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[T]] = []
            for item in items:
                if tasks:
                    await asyncio.sleep(0)
                tasks.append(group.create_task(one(item)))
    except ExceptionGroup as failures:
        failures.__traceback__ = None  # before Python 3.13 its frames keep it and the items in memory
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
