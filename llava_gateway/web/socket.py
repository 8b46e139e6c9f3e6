"""One WebSocket endpoint of a door: messages of JSON come in, one after the other, and each is answered by messages of JSON."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from llava_gateway import metrics
from llava_gateway.admission import Admission
from llava_gateway.errors import GatewayError
from llava_gateway.web.body import Bodies, ClientLeft, JsonBody
from llava_gateway.web.endpoint import unless

log = logging.getLogger(__name__)

NORMAL, POLICY_VIOLATION = 1000, 1008


class Answer:
    """Sends values as messages, which answer one of the client's."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.ended = False
        """Whether its last message is on its way. The client may send its next one from then on."""

    async def __call__(self, value: Any, *, last: bool = False) -> None:
        self.ended = last
        await self._send({"type": "websocket.send", "text": orjson.dumps(value).decode()})


@dataclass(frozen=True)
class JsonSocket:
    """An ASGI app. A client that leaves cancels `handle`, as one that sends a message while another is being answered does."""

    handle: Callable[[JsonBody, Answer], Coroutine[Any, Any, None]]
    fail: Callable[[GatewayError, Answer], Awaitable[None]]
    admission: Admission
    bodies: Bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            early: list[Message] = []
            async with asyncio.timeout(None) as idle:
                while True:
                    idle.reschedule(asyncio.get_running_loop().time() + self.bodies.timeout)
                    message = early.pop() if early else await receive()
                    if message["type"] != "websocket.receive":
                        return
                    idle.reschedule(None)
                    await self._answer(message, early, scope, receive, send)
        except ClientLeft:
            metrics.DISCONNECTS.inc()
        except TimeoutError:
            await send({"type": "websocket.close", "code": NORMAL})

    async def _answer(self, message: Message, early: list[Message], scope: Scope, receive: Receive, send: Send) -> None:
        """`early`: gets the next message if that comes between the answer's last one and its end here."""
        answer = Answer(send)
        body = message.pop("bytes", None) or (message.pop("text", None) or "").encode()  # held by nobody else
        with scope["recorder"].record(scope) as record:
            try:
                async with AsyncExitStack() as stack:
                    if reservation := message.get("reservation"):  # our server has counted the message on its way
                        stack.callback(reservation.release)
                    if admit := scope.get("admit"):
                        await stack.enter_async_context(admit())
                    await stack.enter_async_context(self.admission.enter())
                    if reservation:
                        reservation.release()  # the next line counts it anew
                    request = stack.enter_context(self.bodies.message(body))
                    del body
                    await unless(_gone(receive, send, answer, early), self.handle(request, answer))
                record.status = 200
            except GatewayError as error:
                record.status, record.call.code = error.status, error.code or error.type
                await self.fail(error, answer)
            except ClientLeft:
                raise
            except Exception:
                log.exception("request %s failed", record.call.id)
                record.status, record.call.code = 500, "server_error"
                await self.fail(GatewayError("The server failed on this request; its log says more."), answer)


async def _gone(receive: Receive, send: Send, answer: Answer, early: list[Message]) -> None:
    """Until anything comes from the client, which is to wait for its answer."""
    message = await receive()
    if answer.ended:
        early.append(message)
        await asyncio.Future()
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "one message at a time"})
