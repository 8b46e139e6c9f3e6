"""One JSON endpoint of a door, as an ASGI app: let in, read, handle, and whatever happens, answer in the door's words or fall silent."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.errors import GatewayError
from llava_gateway.http.request_body import ClientDisconnected, JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.observability import metrics
from llava_gateway.observability.context import current_context
from llava_gateway.serving.admission import Admission

log = logging.getLogger(__name__)

Handle = Callable[[JsonBody, ResponseWriter], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class JsonEndpoint:
    """A client that leaves cancels `handle`, which closes what it has opened: generation stops, streamed or not."""

    handle: Handle
    render_error: ErrorRenderer
    admission: Admission
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = ResponseWriter(send, writer=scope.get("writer"))
        try:
            async with self.admission.enter(), self.body_reader.json(scope, receive) as body:
                await run_until_disconnect(_disconnected(receive, response), self.handle(body, response))
        except ClientDisconnected:
            metrics.DISCONNECTS.inc()
            log.debug("the client left")
        except GatewayError as error:
            if error.status == 500:
                log.error("%s", error.message, exc_info=error)
            current_context().code = error.code or error.type
            error.__traceback__ = error.__context__ = error.__cause__ = None  # their frames hold the body, which is no longer counted
            await self.render_error(error, response)


async def run_until_disconnect(gone: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Do the work; cancel it as soon as `gone` has come to its end. ClientLeft then."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(gone)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
    finally:
        watch.cancel()
        if not task.done():
            await cancel_and_wait(task)
    await task


async def _disconnected(receive: Receive, response: ResponseWriter) -> None:
    """Until the client has left before its answer was whole. (Servers say the same of a client whose answer is.)"""
    while (await receive())["type"] != "http.disconnect":
        pass
    if response.ended:
        await asyncio.Future()


NORMAL, POLICY_VIOLATION = 1000, 1008


class WebSocketWriter:
    """Sends values as messages, which answer one of the client's."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.ended = False
        """Whether its last message is on its way. The client may send its next one from then on."""

    async def __call__(self, value: Any, *, last: bool = False) -> None:
        self.ended = last
        await self._send({"type": "websocket.send", "text": orjson.dumps(value).decode()})


@dataclass(frozen=True)
class JsonWebSocketEndpoint:
    """An ASGI app. A client that leaves cancels `handle`, as one that sends a message while another is being answered does."""

    handle: Callable[[JsonBody, WebSocketWriter], Coroutine[Any, Any, None]]
    render_error: Callable[[GatewayError, WebSocketWriter], Awaitable[None]]
    admission: Admission
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            early: list[Message] = []
            async with asyncio.timeout(None) as idle:
                while True:
                    idle.reschedule(asyncio.get_running_loop().time() + self.body_reader.timeout)
                    message = early.pop() if early else await receive()
                    if message["type"] != "websocket.receive":
                        return
                    idle.reschedule(None)
                    await self._answer(message, early, scope, receive, send)
        except ClientDisconnected:
            metrics.DISCONNECTS.inc()
        except TimeoutError:
            await send({"type": "websocket.close", "code": NORMAL})

    async def _answer(self, message: Message, early: list[Message], scope: Scope, receive: Receive, send: Send) -> None:
        """`early`: gets the next message if that comes between the answer's last one and its end here."""
        answer = WebSocketWriter(send)
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
                    request = stack.enter_context(self.body_reader.message(body))
                    del body
                    await run_until_disconnect(_message_or_disconnect(receive, send, answer, early), self.handle(request, answer))
                record.status = 200
            except GatewayError as error:
                record.status, record.context.code = error.status, error.code or error.type
                await self.render_error(error, answer)
            except ClientDisconnected:
                raise
            except Exception:
                log.exception("request %s failed", record.context.id)
                record.status, record.context.code = 500, "server_error"
                await self.render_error(GatewayError("The server failed on this request; its log says more."), answer)


async def _message_or_disconnect(receive: Receive, send: Send, answer: WebSocketWriter, early: list[Message]) -> None:
    """Until anything comes from the client, which is to wait for its answer."""
    message = await receive()
    if answer.ended:
        early.append(message)
        await asyncio.Future()
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "one message at a time"})
