"""uvicorn's WebSocket protocol with limits: the bytes of an unfinished message are counted with all bodies, a message must be whole in
time, and frames are bounded in number. A client that does not read is not read from."""

import asyncio
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from llava_gateway.errors import BodyTooLarge, TooManyRequests
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.settings import Settings

SLICE = 1 << 12
"""Bytes that are parsed before limits are looked at again."""
FREE_FRAMES, BYTES_PER_FRAME = 1000, 1024
"""Frames that may come until a message is whole, and bytes that allow for one more. Clients that split messages do so by 4 KiB or more."""
GOODBYE = 3
"""Seconds that a client gets to close its side."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol for one WebSocket, with this server's limits.

    Every message, a text too, reaches the application as bytes. Its key `reservation` is the memory that the message takes of the body
    reader's limit; the application releases it.
    """

    settings: Settings
    body_reader: RequestBodyReader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._message = bytearray()
        self._reservation = self.body_reader.reservation()
        self._deadline: asyncio.TimerHandle | None = None
        self._new_frames = self._new_bytes = 0
        self.close_timeout = GOODBYE
        self._left = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_message()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A client that does not read sends nothing more either: each of its pings would add to what it is to read."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:  # the request's head, from the HTTP protocol
            super().data_received(data)
            return
        if not self.handshake_complete:  # a client has to wait until then
            self.transport.abort()
            return
        for start in range(0, len(data), SLICE):
            if self._left or self.transport.is_closing():
                break
            part = data[start : start + SLICE]
            self._new_bytes += len(part)
            super().data_received(part)
            self._count()

    def handle_events(self) -> None:
        self._new_frames += len(self.conn.events)
        super().handle_events()

    def handle_text(self, event: Frame) -> None:
        self.handle_bytes(event)

    def handle_bytes(self, event: Frame) -> None:
        self.handle_cont(event)

    def handle_cont(self, event: Frame) -> None:
        """Fragments are joined as they come: each in a list would take a hundred bytes, even if it is empty."""
        if not event.fin:
            self._message += event.data
            return
        message = bytes(self._message + event.data) if self._message else bytes(event.data)
        self._message = bytearray()
        if not self.close_sent:
            self._deliver(message)

    def handle_ping(self) -> None:
        if not self.close_sent:
            super().handle_ping()

    def _deliver(self, message: bytes) -> None:
        if not self.queue.empty():
            self._fail(CloseCode.POLICY_VIOLATION, "one message at a time")
            return
        reservation, self._reservation = self._reservation, self.body_reader.reservation()
        try:
            reservation.grow_to(len(message))
        except (BodyTooLarge, TooManyRequests) as error:
            reservation.release()
            self._refuse(error)
            return
        self._stop_deadline()
        self._new_frames = self._new_bytes = 0
        event: Any = {"type": "websocket.receive", "bytes": message, "reservation": reservation}
        self.queue.put_nowait(event)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_parser_exception(self) -> None:
        assert self.conn.close_sent is not None
        self._leave(self.conn.close_sent.code, self.conn.close_sent.reason)

    async def send(self, message: ASGISendEvent) -> None:
        """What comes after a close is dropped: the application may not know of it yet."""
        await self.writable.wait()
        if not (self.close_sent or self.disconnected):
            await super().send(message)

    async def receive(self) -> ASGIReceiveEvent:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if self.writable.is_set():
                self.transport.resume_reading()
        return message

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        while not self.queue.empty():
            message: Any = self.queue.get_nowait()
            if reservation := message.get("reservation"):
                reservation.release()

    def _count(self) -> None:
        """Hold the bytes of the unfinished message, and the frames since the last whole one, against the limits."""
        size = len(self._message) + len(self.conn.reader.buffer)
        if self._new_frames > FREE_FRAMES + self._new_bytes // BYTES_PER_FRAME:
            self._fail(CloseCode.POLICY_VIOLATION, "too many small frames")
            return
        try:
            self._reservation.grow_to(size)
        except (BodyTooLarge, TooManyRequests) as error:
            self._refuse(error)
            return
        if not (size or self.conn.current_size is not None):
            self._reservation.release()
            self._stop_deadline()
        elif not self._deadline:
            self._deadline = self.loop.call_later(self.settings.body_timeout, self._fail, CloseCode.POLICY_VIOLATION, "message timeout")

    def _refuse(self, error: BodyTooLarge | TooManyRequests) -> None:
        code = CloseCode.MESSAGE_TOO_BIG if isinstance(error, BodyTooLarge) else CloseCode.TRY_AGAIN_LATER
        self._fail(code, error.message)

    def _fail(self, code: CloseCode, reason: str) -> None:
        if self.close_sent:  # it has been told once
            self.transport.abort()
            return
        self.conn.fail(code, reason)
        self._leave(code, reason)

    def _leave(self, code: int, reason: str) -> None:
        """Say goodbye and hear the client out: to close with bytes unread would reset the connection before it has read the reason."""
        self._drop_message()
        self.close_sent = self._left = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(GOODBYE, self.transport.abort)

    def _drop_message(self) -> None:
        self._message = bytearray()
        self._reservation.release()
        self._stop_deadline()

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def websocket_protocol(settings: Settings, body_reader: RequestBodyReader) -> type[WebSocketProtocol]:
    """Return the protocol class for a server with these limits, as `uvicorn.Config(ws=...)` takes it."""
    return type("WebSocketProtocol", (WebSocketProtocol,), {"settings": settings, "body_reader": body_reader})
