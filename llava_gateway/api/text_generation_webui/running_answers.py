"""The answers in progress, by client, so that a client can stop its own.

`/api/v1/stop-stream` ends all answers of the client that calls it, and the dialect has no ids of requests. A stopped answer ends as if the
model had ended it: the client keeps the text that has arrived. Each answer therefore runs within an `asyncio.timeout`, which cancels its
block without cancelling its task.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway.auth.rate_limits import current_lease


class RunningAnswers:
    """The answers in progress, each with its client. Used from one event loop."""

    def __init__(self) -> None:
        self._clients: dict[asyncio.Timeout, str] = {}
        """The client of each answer. An answer is ended by its timeout."""

    @asynccontextmanager
    async def until_stopped(self, client: str) -> AsyncIterator[None]:
        """Run the block until it ends, or until `stop` is called for the client: the block is cancelled then, and no error is raised."""
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._clients[timeout] = client
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
        finally:
            self._clients.pop(timeout, None)

    def stop(self, client: str) -> None:
        """End all answers of the client."""
        for timeout in [timeout for timeout, owner in self._clients.items() if owner == client]:
            del self._clients[timeout]  # a second stop must not reschedule a timeout that has expired
            timeout.reschedule(asyncio.get_running_loop().time())


def client_id(address: str) -> str:
    """Return the id of the client that sent this request: its API key's digest, or its address on a server without keys."""
    lease = current_lease()
    return lease.key.digest if lease else address


@dataclass(frozen=True)
class ConnectionApp:
    """An ASGI app that creates an ASGI app for each connection, from the client's address."""

    create_app: Callable[[str], ASGIApp]
    """Creates the app for a client's address. The address is empty on a Unix socket."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        await self.create_app(client[0] if client else "")(scope, receive, send)
