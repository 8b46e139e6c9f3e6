"""The answers of `/api/chat` and `/api/generate`, whole and streamed.

A stream has one JSON object in each line. The last one has the counts of tokens and the durations. Ollama never sends a call of a tool in
pieces, so the pieces of a call are collected.
"""

import time
from datetime import UTC, datetime
from typing import Any

import orjson

from llava_gateway.api.ollama.context import encode_context
from llava_gateway.api.tools import render_arguments
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import ChatRequest, CompletionRequest, Delta, TokenLogprob, ToolCallDelta


def render_time(moment: datetime | None = None) -> str:
    """Return a moment as Ollama writes it, in UTC. None: now."""
    return (moment or datetime.now(UTC)).isoformat().replace("+00:00", "Z")


class Stopwatch:
    """Measures one answer from the arrival of its request on, in nanoseconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter_ns()
        self._first_delta: int | None = None

    def first_delta(self) -> None:
        """Take the time, if this is the first delta."""
        if self._first_delta is None:
            self._first_delta = time.perf_counter_ns()

    def render(self, deltas: DeltaStream) -> dict[str, int]:
        """Return the counts and durations. The prompt's duration ends with the first delta; clients divide by it and by the answer's."""
        end = time.perf_counter_ns()
        first = self._first_delta or end
        return {
            "total_duration": end - self._start,
            "load_duration": 0,
            "prompt_eval_count": deltas.usage.prompt_tokens,
            "prompt_eval_duration": max(first - self._start, 1),
            "eval_count": deltas.usage.completion_tokens,
            "eval_duration": max(end - first, 1),
        }


class Calls:
    """Collects the calls of tools of an answer, piece by piece."""

    def __init__(self) -> None:
        self._call: ToolCallDelta | None = None
        """The first piece of the call whose pieces arrive."""
        self._arguments: list[str] = []

    def add(self, delta: Delta) -> list[dict[str, Any]]:
        """Add a delta's pieces. Returns the calls that are complete now: all of them, if the delta is the answer's last."""
        complete: list[dict[str, Any]] = []
        for piece in delta.tool_calls:
            if piece.id:
                complete += self._complete()
                self._call = piece
            self._arguments.append(piece.arguments)
        return complete + self._complete() if delta.finish_reason else complete

    def _complete(self) -> list[dict[str, Any]]:
        call, arguments = self._call, "".join(self._arguments)
        self._call, self._arguments = None, []
        if call is None:
            return []
        return [
            {"id": call.id, "function": {"index": call.index, "name": call.name, "arguments": orjson.Fragment(render_arguments(arguments))}}
        ]


class AnswerRenderer:
    """Renders one answer, delta by delta, as the lines of a stream or as one JSON object."""

    def __init__(
        self, model: str, request: ChatRequest | CompletionRequest, deltas: DeltaStream, stopwatch: Stopwatch, *, chat: bool
    ) -> None:
        """`model`: the name that the client has sent. `chat`: whether the answer is a message, as for `/api/chat`, or a text."""
        self._start = orjson.dumps({"model": model})[:-1] + b',"created_at":"'
        self._request = request
        self._deltas = deltas
        self._stopwatch = stopwatch
        self._chat = chat
        self._calls = Calls()
        self._texts: list[str] = []
        self._tool_calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def render_delta(self, delta: Delta) -> bytes:
        """Return the line for a delta. There is none for a delta without text, complete calls and log probabilities."""
        calls, logprobs = self._add(delta)
        if not self._chat:
            self._texts.append(delta.text)  # for the context
        if not delta.text and not calls and not logprobs:
            return b""
        more = b',"logprobs":' + orjson.dumps(logprobs) if logprobs else b""
        return b"%b%b%b,%b" % (self._start, render_time().encode(), self._content(delta.text, calls), b'"done":false%b}\n' % more)

    def render_end(self) -> bytes:
        """Return the last line of the stream."""
        return self._object("", [], []) + b"\n"

    def add(self, delta: Delta) -> None:
        """Add a delta to a whole answer."""
        calls, logprobs = self._add(delta)
        self._texts.append(delta.text)
        self._tool_calls += calls
        self._logprobs += logprobs

    def render_whole(self) -> bytes:
        """Return the whole answer."""
        return self._object("".join(self._texts), self._tool_calls, self._logprobs)

    def _add(self, delta: Delta) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Take note of a delta. Returns the calls that are complete now, and the delta's log probabilities."""
        self._stopwatch.first_delta()
        self._finish_reason = delta.finish_reason or self._finish_reason
        return self._calls.add(delta), [_render_logprob(entry) for entry in delta.logprobs]

    def _content(self, text: str, calls: list[dict[str, Any]]) -> bytes:
        """Return the time's end and the field with the text."""
        if not self._chat:
            return b'","response":' + orjson.dumps(text)
        tool_calls = b',"tool_calls":' + orjson.dumps(calls) if calls else b""
        return b'","message":{"role":"assistant","content":%b%b}' % (orjson.dumps(text), tool_calls)

    def _object(self, text: str, calls: list[dict[str, Any]], logprobs: list[dict[str, Any]]) -> bytes:
        end: dict[str, Any] = {"done": True, "done_reason": "length" if self._finish_reason == "length" else "stop"}
        if not self._chat and isinstance(self._request, ChatRequest):
            context = encode_context(self._request.messages, "".join(self._texts))
            end |= {"context": context} if context else {}
        end |= self._stopwatch.render(self._deltas)
        end |= {"logprobs": logprobs} if logprobs else {}
        return b"%b%b%b,%b" % (self._start, render_time().encode(), self._content(text, calls), orjson.dumps(end)[1:])


def render_empty(model: str, *, chat: bool) -> dict[str, Any]:
    """Return the answer to a request without a prompt, by which clients load a model."""
    content = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": model, "created_at": render_time(), **content, "done": True, "done_reason": "load"}


def _render_logprob(entry: TokenLogprob) -> dict[str, Any]:
    top = [_render_token(token, logprob) for token, logprob in entry.top]
    return _render_token(entry.token, entry.logprob) | ({"top_logprobs": top} if top else {})


def _render_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
