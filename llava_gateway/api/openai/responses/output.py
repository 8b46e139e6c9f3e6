"""The output items of a response, collected delta by delta, and the events that show their growth.

A whole answer and a stream use the same classes; for a whole answer nobody reads the events. The repeated part of an event is rendered once
for each item, since one event is rendered for every token.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import orjson

from llava_gateway.api.openai.chat_response import render_logprob
from llava_gateway.api.openai.responses.items import make_item_id
from llava_gateway.types import Delta, FinishReason, TokenLogprob, ToolCallDelta

COMPLETED, INCOMPLETE = "completed", "incomplete"


class EventWriter:
    """Numbers the events of one stream and frames them as server-sent events."""

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, fields: Mapping[str, object]) -> bytes:
        """Return an event with these fields."""
        return self.frame(event_head(kind, fields))

    def frame(self, head: bytes, rest: bytes = b"") -> bytes:
        """Return the event that begins with `head`. `rest`: further fields as JSON, each after a comma."""
        number = self._number
        self._number += 1
        return b"%b%d%b}\n\n" % (head, number, rest)


def event_head(kind: str, fields: Mapping[str, object]) -> bytes:
    """Return the beginning of an event, up to its number."""
    return b'event: %b\ndata: %b,"sequence_number":' % (kind.encode(), orjson.dumps({"type": kind, **fields})[:-1])


class MessageItem:
    """A message of the assistant, with one text."""

    def __init__(self, item_id: str, index: int, events: EventWriter) -> None:
        """`index`: of the item in the output."""
        self._id, self._index, self._events = item_id, index, events
        self._texts: list[str] = []
        self._logprobs: list[bytes] = []
        """The log probabilities of each delta, as JSON without brackets."""
        self._place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._delta_head = event_head("response.output_text.delta", self._place)

    def begin(self) -> bytes:
        """Return the events that begin the item."""
        added = {"output_index": self._index, "item": self._item("in_progress", [])}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._events.event("response.output_item.added", added) + self._events.event(
            "response.content_part.added", {**self._place, "part": part}
        )

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        """Append a text, and return its event."""
        self._texts.append(text)
        rendered = b""
        if logprobs:
            rendered = orjson.dumps([render_logprob(each) for each in logprobs])[1:-1]
            self._logprobs.append(rendered)
        return self._events.frame(self._delta_head, b',"logprobs":[%b],"delta":%b' % (rendered, orjson.dumps(text)))

    def end(self, status: str) -> tuple[bytes, bytes]:
        """Return the item as JSON, and the events that end it."""
        text, logprobs = "".join(self._texts), orjson.Fragment(b"[" + b",".join(self._logprobs) + b"]")
        part = orjson.Fragment(orjson.dumps({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}))
        item = orjson.dumps(self._item(status, [part]))
        return item, b"".join(
            (
                self._events.event("response.output_text.done", {**self._place, "text": text, "logprobs": logprobs}),
                self._events.event("response.content_part.done", {**self._place, "part": part}),
                self._events.event("response.output_item.done", {"output_index": self._index, "item": orjson.Fragment(item)}),
            )
        )

    def _item(self, status: str, content: list[object]) -> dict[str, object]:
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}


class CallItem:
    """A call of a function."""

    def __init__(self, item_id: str, index: int, events: EventWriter, call: ToolCallDelta) -> None:
        """`index`: of the item in the output. `call`: the first piece of the call."""
        self._id, self._index, self._events = item_id, index, events
        self._call_id, self._name = call.id, call.name
        self._arguments: list[str] = []
        self._place = {"item_id": item_id, "output_index": index}
        self._delta_head = event_head("response.function_call_arguments.delta", self._place)

    def begin(self) -> bytes:
        """Return the event that begins the item."""
        return self._events.event("response.output_item.added", {"output_index": self._index, "item": self._item("in_progress", "")})

    def add(self, arguments: str) -> bytes:
        """Append a piece of the arguments, and return its event."""
        if not arguments:
            return b""
        self._arguments.append(arguments)
        return self._events.frame(self._delta_head, b',"delta":' + orjson.dumps(arguments))

    def end(self, status: str) -> tuple[bytes, bytes]:
        """Return the item as JSON, and the events that end it."""
        arguments = "".join(self._arguments)
        item = orjson.dumps(self._item(status, arguments))
        done = {**self._place, "name": self._name, "arguments": arguments}
        return item, self._events.event("response.function_call_arguments.done", done) + self._events.event(
            "response.output_item.done", {"output_index": self._index, "item": orjson.Fragment(item)}
        )

    def _item(self, status: str, arguments: str) -> dict[str, object]:
        call = {"call_id": self._call_id, "name": self._name, "arguments": arguments}
        return {"id": self._id, "type": "function_call", "status": status, **call}


class Output:
    """The output of one response: texts become messages, and calls of tools become items of their own, in the order of the answer."""

    def __init__(self, response_id: str, first_position: int, events: EventWriter, *, may_call: bool) -> None:
        """`first_position`: of the output among the response's items, for the items' ids. `may_call`: whether the request has tools."""
        self.items: list[bytes] = []
        """The items that have ended, as JSON."""
        self.finish_reason: FinishReason | None = None
        self._response_id, self._first_position, self._events = response_id, first_position, events
        self._may_call = may_call
        self._open: MessageItem | CallItem | None = None
        self._logprobs: tuple[TokenLogprob, ...] = ()
        """Log probabilities of tokens whose text is not known yet, if they may begin a call: calls show no log probabilities."""

    def add(self, delta: Delta) -> bytes:
        """Append a delta, and return its events."""
        events = self._add_text(delta) if delta.text or delta.logprobs else b""
        for call in delta.tool_calls:
            if call.id:
                self._logprobs = ()
                events += self._end(COMPLETED)
                self._open = CallItem(self._item_id("fc"), len(self.items), self._events, call)
                events += self._open.begin()
            assert isinstance(self._open, CallItem)
            events += self._open.add(call.arguments)
        if delta.finish_reason is not None:
            events += self._finish(delta.finish_reason)
        return events

    def _add_text(self, delta: Delta) -> bytes:
        logprobs = self._logprobs + delta.logprobs if self._logprobs else delta.logprobs
        if self._may_call and not delta.text:
            self._logprobs = () if isinstance(self._open, CallItem) else logprobs
            return b""
        self._logprobs = ()
        return self._add_to_message(delta.text, _tokens_of(delta.text, logprobs) if delta.tool_calls else logprobs)

    def _add_to_message(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        """Append to the open message, or to a new one, and return the events."""
        if isinstance(self._open, MessageItem):
            return self._open.add(text, logprobs)
        events = self._end(COMPLETED)
        self._open = message = MessageItem(self._item_id("msg"), len(self.items), self._events)
        events += message.begin()
        return events + message.add(text, logprobs) if text or logprobs else events

    def _finish(self, reason: FinishReason) -> bytes:
        """End the output, and return the events. An answer without text and calls becomes an empty message."""
        self.finish_reason = reason
        events = self._add_to_message("", self._logprobs) if self._logprobs or not self._open else b""
        return events + self._end(INCOMPLETE if reason == "length" else COMPLETED)

    def _end(self, status: str) -> bytes:
        """End the open item, if there is one, and return its events."""
        if self._open is None:
            return b""
        item, events = self._open.end(status)
        self.items.append(item)
        self._open = None
        return events

    def _item_id(self, prefix: Literal["msg", "fc"]) -> str:
        return make_item_id(prefix, self._response_id, self._first_position + len(self.items))


def _tokens_of(text: str, logprobs: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
    """Return the first log probabilities whose tokens make up `text`."""
    missing = len(text.encode())
    for number, logprob in enumerate(logprobs):
        if missing <= 0:
            return logprobs[:number]
        missing -= len(logprob.token)
    return logprobs
