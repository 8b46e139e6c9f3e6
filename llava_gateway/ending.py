"""Ending a task and waiting until it has ended, whatever happens meanwhile."""

import asyncio
from typing import Any


async def end(task: asyncio.Task[Any]) -> None:
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
