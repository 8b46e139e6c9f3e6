"""What the door writes besides answers: the events of a stream, and errors."""

from typing import Any

import orjson

from llava_gateway.errors import GatewayError
from llava_gateway.web.socket import Answer


class Events:
    """What one connection is sent. The events that answer a message are numbered from 0."""

    def __init__(self) -> None:
        self.sent = 0
        """How many, of the answer that is being sent."""

    async def text(self, answer: Answer, fields: dict[str, Any]) -> int:
        """Returns the bytes that the event takes."""
        event = orjson.dumps({"event": "text_stream", "message_num": self.sent} | fields)
        await answer(orjson.Fragment(event))
        self.sent += 1
        return len(event)

    async def end(self, answer: Answer) -> None:
        number, self.sent = self.sent, 0
        await answer({"event": "stream_end", "message_num": number}, last=True)

    async def fail(self, error: GatewayError, answer: Answer) -> None:
        """An error's event has no number, so that those of a text and its end go on as they do without one."""
        await answer({"event": "error", "error": render_error(error)})
        await self.end(answer)


def render_error(error: GatewayError) -> dict[str, Any]:
    return {"message": error.message, "param": error.param, "code": error.code}
