"""The answers of `/v1/messages`, whole and streamed.

An answer is a list of content blocks: texts and calls of tools. A stream sends the blocks one after the other, each between a start and a
stop event. The parts of events that repeat are rendered once, since a delta is rendered for every token.
"""

from typing import Any

import orjson

from llava_gateway.api.tools import render_arguments
from llava_gateway.http.response import Parts
from llava_gateway.observability.context import new_id
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta, ToolCallDelta, Usage

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_BLOCK_START = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_TEXT_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":'
_JSON_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"input_json_delta","partial_json":'
)
_DELTA_END = b"}}\n\n"
_EMPTY_TEXT = b'{"type":"text","text":"","citations":null}'


def render_usage(usage: Usage, output_tokens: int) -> dict[str, Any]:
    """Return Anthropic's `Usage`. The prompt's tokens are the sum of `input_tokens` and of those read from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": output_tokens,
    }


class StopReason:
    """Why an answer has ended."""

    def __init__(self, stop_sequences: tuple[str, ...]) -> None:
        """`stop_sequences`: the client's. A stop string of the chat template is the regular end of a turn."""
        self._stop_sequences = stop_sequences
        self._last: Delta | None = None
        self._calls = False

    def add(self, delta: Delta) -> None:
        """Take note of a delta of the answer."""
        self._last = delta
        self._calls = self._calls or bool(delta.tool_calls)

    def render(self) -> dict[str, str | None]:
        """Return Anthropic's `stop_reason` and `stop_sequence`."""
        reason, sequence = "end_turn", None
        if self._last and self._last.finish_reason == "length":
            reason = "max_tokens"
        elif self._calls:
            reason = "tool_use"
        elif self._last and self._last.stopped_by in self._stop_sequences:
            reason, sequence = "stop_sequence", str(self._last.stopped_by)
        return {"stop_reason": reason, "stop_sequence": sequence}


async def collect_message(deltas: DeltaStream, model: str, stop_sequences: tuple[str, ...]) -> Parts:
    """Wait for a whole answer, and return its `Message` as JSON in parts. Raises the engine's error."""
    content, stop_reason = Content(), StopReason(stop_sequences)

    def add(delta: Delta) -> None:
        content.add(delta)
        stop_reason.add(delta)

    await deltas.collect(add)
    start = orjson.dumps(_message_fields(model))[:-1] + b',"content":['
    end = stop_reason.render() | {"usage": render_usage(deltas.usage, deltas.usage.completion_tokens)}
    return [start, b",".join(content.render()), b"]," + orjson.dumps(end)[1:]]


class Content:
    """The content blocks of an answer, collected delta by delta."""

    def __init__(self) -> None:
        self._blocks: list[tuple[ToolCallDelta | None, list[str]]] = []
        """The first piece of a call, or None for a text, and all pieces of the arguments or the text."""

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        continued, calls = split_calls(delta)
        for call in continued:
            self._blocks[-1][1].append(call.arguments)
        if delta.text:
            if not self._blocks or self._blocks[-1][0]:
                self._blocks.append((None, []))
            self._blocks[-1][1].append(delta.text)
        for call in calls:
            if call.id:
                self._blocks.append((call, []))
            self._blocks[-1][1].append(call.arguments)

    def render(self) -> list[bytes]:
        """Return the JSON of each block."""
        return [_render_block(call, "".join(pieces)) for call, pieces in self._blocks]


class MessageEventRenderer:
    """Renders the deltas of one stream as Anthropic's events."""

    def __init__(self, deltas: DeltaStream, model: str, stop_sequences: tuple[str, ...]) -> None:
        self._deltas = deltas
        self._model = model
        self._stop_reason = StopReason(stop_sequences)
        self._started = False
        self._blocks = 0
        """The number of blocks that have begun."""
        self._open: bytes | None = None
        """The beginning of an event with the next piece of the open block. None: no block is open."""
        self._in_text = False
        """Whether the open block is a text."""

    def render_delta(self, delta: Delta) -> bytes:
        """Return the events for a delta. `message_start` comes before the first one, when the prompt's tokens have been counted."""
        self._stop_reason.add(delta)
        events = b""
        if not self._started:
            self._started = True
            events = self._render_message_start() + PING
        if delta.tool_calls:
            return events + self._render_blocks(delta)
        return events + self._render_text(delta.text) if delta.text else events

    def render_end(self) -> bytes:
        """Return the events that end the message."""
        usage = self._deltas.usage
        value = {
            "type": "message_delta",
            "delta": self._stop_reason.render(),
            "usage": render_usage(usage, usage.completion_tokens),
        }
        return self._close_block() + b"event: message_delta\ndata: " + orjson.dumps(value) + b"\n\n" + _MESSAGE_STOP

    def _render_message_start(self) -> bytes:
        fields: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": render_usage(self._deltas.usage, 0)}
        value = {"type": "message_start", "message": _message_fields(self._model) | fields}
        return b"event: message_start\ndata: " + orjson.dumps(value) + b"\n\n"

    def _render_blocks(self, delta: Delta) -> bytes:
        continued, calls = split_calls(delta)
        events = b"".join(map(self._render_piece, continued))
        if delta.text:
            events += self._render_text(delta.text)
        for call in calls:
            if call.id:
                events += self._start_block(_render_block(call, ""), _JSON_DELTA)
            events += self._render_piece(call)
        return events

    def _render_text(self, text: str) -> bytes:
        events = b""
        if not self._in_text:
            events = self._start_block(_EMPTY_TEXT, _TEXT_DELTA)
            self._in_text = True
        return events + (self._open or b"") + orjson.dumps(text) + _DELTA_END

    def _render_piece(self, call: ToolCallDelta) -> bytes:
        return (self._open or b"") + orjson.dumps(call.arguments) + _DELTA_END if call.arguments else b""

    def _start_block(self, block: bytes, delta: bytes) -> bytes:
        """Close the open block and start the next one. `delta`: the beginning of its deltas."""
        events = self._close_block() + _BLOCK_START % (self._blocks, block)
        self._open = delta % self._blocks
        self._blocks += 1
        return events

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open, self._in_text = None, False
        return _BLOCK_STOP % (self._blocks - 1)


def split_calls(delta: Delta) -> tuple[tuple[ToolCallDelta, ...], tuple[ToolCallDelta, ...]]:
    """Return the pieces that continue the call of an earlier delta, and the pieces of new calls.

    The first come before the delta's text, which follows the end of that call if deltas were joined.
    """
    begin = next((index for index, call in enumerate(delta.tool_calls) if call.id), len(delta.tool_calls))
    return delta.tool_calls[:begin], delta.tool_calls[begin:]


def _message_fields(model: str) -> dict[str, Any]:
    """Return the first fields of a message."""
    return {"id": f"msg_{new_id()}", "type": "message", "role": "assistant", "model": model}


def _render_block(call: ToolCallDelta | None, text: str) -> bytes:
    """Return a content block as JSON. `call`: the first piece of a call, whose arguments are `text`. None: the block is the text."""
    if call is None:
        return orjson.dumps({"type": "text", "text": text, "citations": None})
    fields = {"type": "tool_use", "id": f"toolu_{(call.id or '').removeprefix('call_')}", "name": call.name}
    return orjson.dumps(fields)[:-1] + b',"input":' + render_arguments(text) + b"}"
