"""JSON endpoints as ASGI apps, one for HTTP and one for WebSockets.

An endpoint admits a request, reads its body and calls the API's handler. It answers errors in the API's format. A client that disconnects
cancels the handler.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
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

Handle = Callable[[Any, ResponseWriter], Coroutine[Any, Any, None]]
"""Parses the body, a JsonBody or the fields of a form, and writes the response. Raises GatewayError."""


@dataclass(frozen=True)
class JsonEndpoint:
    """An ASGI app that answers HTTP requests with a JSON body.

    A client that disconnects cancels `handle`. The handler then leaves `gateway.open`, which aborts the generation, streamed or not.

        Route("/v1/chat/completions", JsonEndpoint(handle, render_error, gateway.admission, body_reader), methods=["POST"])
    """

    handle: Handle
    render_error: ErrorRenderer
    admission: Admission
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Errors other than GatewayError are left to the middleware."""
        response = ResponseWriter(send, writer=scope.get("writer"))
        try:
            async with self.admission.enter(), self._read(scope, receive) as body:
                await run_until_disconnect(_disconnected(receive, response), self.handle(body, response))
        except ClientDisconnected:
            metrics.DISCONNECTS.inc()
            log.debug("The client disconnected")
        except GatewayError as error:
            if error.status == 500:
                log.error("%s", error.message, exc_info=error)
            current_context().code = error.code or error.type
            # Their frames keep the body alive, whose memory is no longer reserved.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            await self.render_error(error, response)

    def _read(self, scope: Scope, receive: Receive) -> AbstractAsyncContextManager[Any]:
        return self.body_reader.json(scope, receive)


class FormEndpoint(JsonEndpoint):
    """A `JsonEndpoint` for forms: `handle` gets the fields by name instead of a JSON body."""

    def _read(self, scope: Scope, receive: Receive) -> AbstractAsyncContextManager[Any]:
        return self.body_reader.form(scope, receive)


async def run_until_disconnect(disconnected: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, and cancel it when `disconnected` returns first. Raises ClientDisconnected then, otherwise the error of `work`."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(disconnected)
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
    """Return when the client has disconnected before the response was complete.

    ASGI servers also send `http.disconnect` after a complete response. This does not return then.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    if response.ended:
        await asyncio.Future()


NORMAL, POLICY_VIOLATION = 1000, 1008


class WebSocketWriter:
    """Sends the messages that answer one message of the client, each a JSON value."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.ended = False
        """The last message has been sent. The client may send its next message."""

    async def __call__(self, value: Any, *, last: bool = False) -> None:
        """Send `value` as one message."""
        self.ended = last
        await self._send({"type": "websocket.send", "text": orjson.dumps(value).decode()})


@dataclass(frozen=True)
class JsonWebSocketEndpoint:
    """An ASGI app that answers the messages of a WebSocket, one after the other. Each message is a request with a JSON body.

    Each message is authenticated, admitted and recorded as a request of its own. A client that disconnects cancels `handle`. A client that
    sends a message before its last message has been answered is disconnected.
    """

    handle: Callable[[JsonBody, WebSocketWriter], Coroutine[Any, Any, None]]
    render_error: Callable[[GatewayError, WebSocketWriter], Awaitable[None]]
    admission: Admission
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket until the client closes it, or has been silent for `body_reader.timeout` seconds."""
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
        """Answer one message. `early`: the client's next message is put here if it arrives before this method has returned."""
        answer = WebSocketWriter(send)
        body = message.pop("bytes", None) or (message.pop("text", None) or "").encode()  # popped, so that nothing else keeps it alive
        with scope["recorder"].record(scope) as record:
            try:
                async with AsyncExitStack() as stack:
                    if reservation := message.get("reservation"):  # our WebSocket protocol has reserved memory while the message arrived
                        stack.callback(reservation.release)
                    if admit := scope.get("admit"):
                        await stack.enter_async_context(admit())
                    await stack.enter_async_context(self.admission.enter())
                    if reservation:
                        reservation.release()  # the next line reserves the memory again
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
                log.exception("The request %s failed", record.context.id)
                record.status, record.context.code = 500, "server_error"
                await self.render_error(GatewayError("The server failed on this request. The server's log has the details."), answer)


async def _message_or_disconnect(receive: Receive, send: Send, answer: WebSocketWriter, early: list[Message]) -> None:
    """Return when the client disconnects, or sends a message before its last one has been answered: the WebSocket is closed then."""
    message = await receive()
    if answer.ended:
        early.append(message)
        await asyncio.Future()
    if message["type"] == "websocket.receive":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "one message at a time"})
