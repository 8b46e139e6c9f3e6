"""uvicorn's WebSocket protocol, with protection against hostile clients.

The memory of an unfinished message counts as the memory of a request body. A message must be complete in time, and its number of frames is
bounded. Nothing is read from a client that does not read.

These names of uvicorn are not documented. They were read in uvicorn 0.54.0; `tests/unit/http/test_uvicorn_contract.py` fails when one of
them changes.

- `uvicorn._types`: `ASGIReceiveEvent`, `ASGISendEvent`. Only for type checks.
- `uvicorn.protocols.websockets.websockets_sansio_impl.WebSocketsSansIOProtocol` is the base class of `WebSocketProtocol`.
  Its methods that are overridden: `connection_made`, `connection_lost`, `pause_writing`, `resume_writing`, `data_received`,
  `handle_events`, `handle_text`, `handle_bytes`, `handle_cont`, `handle_ping`, `handle_parser_exception`, `send`, `receive`,
  `on_task_complete`.
  Its attributes that are read: `conn`, `disconnected`, `handshake_complete`, `handshake_initiated`, `loop`, `queue`, `transport`,
  `writable`.
  Its attributes that are also set: `close_sent`, `close_timeout`, `close_timer`, `read_paused`.
- Of its `conn`, a `ServerProtocol` of the library `websockets`: `events`, `reader.buffer`, `current_size`, `close_sent`, `fail`,
  `data_to_send`.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from llava_gateway.errors import BodyTooLarge, TooManyRequests
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.settings import Settings

SLICE = 1 << 12
"""Bytes that are parsed before the limits are checked again."""
FREE_FRAMES, BYTES_PER_FRAME = 1000, 1024
"""A message may have `FREE_FRAMES` frames, and one more for each `BYTES_PER_FRAME` bytes. Clients split messages at 4 KiB or more."""
CLOSE_TIMEOUT = 3
"""Seconds that a client has for closing its side."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket with the limits of the settings. `websocket_protocol` makes the class for a server.

    The app receives every message as bytes, also a text. The event's key `reservation` is the `BodyReservation` for the message's memory,
    which the app releases.
    """

    settings: Settings
    body_reader: RequestBodyReader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._message = bytearray()
        self._reservation = self.body_reader.reservation()
        self._deadline: asyncio.TimerHandle | None = None
        self._new_frames = self._new_bytes = 0
        self.close_timeout = CLOSE_TIMEOUT
        self._closing = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_message()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read: each of its pings would add a pong to the bytes that it has not read."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, in slices between which the limits are checked."""
        if not self.handshake_initiated:  # the request's head, from the HTTP protocol
            super().data_received(data)
            return
        if not self.handshake_complete:  # the client must wait for the response to the handshake
            self.transport.abort()
            return
        for start in range(0, len(data), SLICE):
            if self._closing or self.transport.is_closing():
                break
            part = data[start : start + SLICE]
            self._new_bytes += len(part)
            super().data_received(part)
            self._check_limits()

    def handle_events(self) -> None:
        self._new_frames += len(self.conn.events)
        super().handle_events()

    def handle_text(self, event: Frame) -> None:
        self.handle_bytes(event)

    def handle_bytes(self, event: Frame) -> None:
        self.handle_cont(event)

    def handle_cont(self, event: Frame) -> None:
        """Join fragments as they arrive: in a list each would take a hundred bytes, even an empty one."""
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
        """Put a complete message into the app's queue, and stop reading until the app has received it."""
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
        self._close(self.conn.close_sent.code, self.conn.close_sent.reason)

    async def send(self, message: ASGISendEvent) -> None:
        """Send an event. Events after a close are dropped: the app may not know of the close yet."""
        await self.writable.wait()
        if not (self.close_sent or self.disconnected):
            await super().send(message)

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next event. Reading goes on unless the client does not read."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if self.writable.is_set():
                self.transport.resume_reading()
        return message

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Release the memory of messages that the app has not received."""
        super().on_task_complete(task)
        while not self.queue.empty():
            message: Any = self.queue.get_nowait()
            if reservation := message.get("reservation"):
                reservation.release()

    def _check_limits(self) -> None:
        """Check the bytes of the unfinished message and the frames since the last complete message. Close the WebSocket beyond a limit."""
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
        """Close the WebSocket with an error; abort the connection if a close has been sent already."""
        if self.close_sent:
            self.transport.abort()
            return
        self.conn.fail(code, reason)
        self._close(code, reason)

    def _close(self, code: int, reason: str) -> None:
        """Send the close frame and go on reading, without parsing, until the client has closed its side.

        Closing a connection with unread bytes would reset it, perhaps before the client has read the reason.
        """
        self._drop_message()
        self.close_sent = self._closing = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _drop_message(self) -> None:
        self._message = bytearray()
        self._reservation.release()
        self._stop_deadline()

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def websocket_protocol(settings: Settings, body_reader: RequestBodyReader) -> type[WebSocketProtocol]:
    """Return the protocol class for a server with these settings, as `uvicorn.Config(ws=...)` takes it."""
    return type("WebSocketProtocol", (WebSocketProtocol,), {"settings": settings, "body_reader": body_reader})
