"""Answers that run, and whose they are: whoever says stop stops their own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway.call import current


class Running:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._callers: dict[asyncio.Timeout, str] = {}

    @asynccontextmanager
    async def until_stopped(self, caller: str) -> AsyncIterator[None]:
        """The block ends early, and without an error, if its caller says stop."""
        timer = asyncio.timeout(None)
        try:
            async with timer:
                self._callers[timer] = caller
                yield
        except TimeoutError:
            if not timer.expired():
                raise
        finally:
            self._callers.pop(timer, None)

    def stop(self, caller: str) -> None:
        """End all answers of this caller."""
        for timer in [timer for timer, whose in self._callers.items() if whose == caller]:
            del self._callers[timer]  # once only: what has been told to stop cannot be told again
            timer.reschedule(asyncio.get_running_loop().time())


def caller(address: str) -> str:
    """Whose request this is: the key's that came with it or, where none is asked for, its address's."""
    known = current().caller
    return known.key.digest if known else address


@dataclass(frozen=True)
class ByClient:
    """An ASGI app made anew for each connection, from the client's address (empty at a socket that has none)."""

    make: Callable[[str], ASGIApp]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        await self.make(client[0] if client else "")(scope, receive, send)
