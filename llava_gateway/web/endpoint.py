"""One JSON endpoint of a door, as an ASGI app: let in, read, handle, and whatever happens, answer in the door's words or fall silent."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from llava_gateway import metrics
from llava_gateway.admission import Admission
from llava_gateway.call import current
from llava_gateway.ending import end
from llava_gateway.errors import GatewayError
from llava_gateway.web.body import Bodies, ClientLeft, JsonBody
from llava_gateway.web.reply import Fail, Reply

log = logging.getLogger(__name__)

Handle = Callable[[JsonBody, Reply], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class JsonEndpoint:
    """A client that leaves cancels `handle`, which closes what it has opened: generation stops, streamed or not."""

    handle: Handle
    fail: Fail
    admission: Admission
    bodies: Bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, writer=scope.get("writer"))
        try:
            async with self.admission.enter(), self.bodies.json(scope, receive) as body:
                await unless(_disconnected(receive, reply), self.handle(body, reply))
        except ClientLeft:
            metrics.DISCONNECTS.inc()
            log.debug("the client left")
        except GatewayError as error:
            if error.status == 500:
                log.error("%s", error.message, exc_info=error)
            current().code = error.code or error.type
            error.__traceback__ = error.__context__ = error.__cause__ = None  # their frames hold the body, which is no longer counted
            await self.fail(error, reply)


async def unless(gone: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Do the work; cancel it as soon as `gone` has come to its end. ClientLeft then."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(gone)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
    finally:
        watch.cancel()
        if not task.done():
            await end(task)
    await task


async def _disconnected(receive: Receive, reply: Reply) -> None:
    """Until the client has left before its answer was whole. (Servers say the same of a client whose answer is.)"""
    while (await receive())["type"] != "http.disconnect":
        pass
    if reply.ended:
        await asyncio.Future()
