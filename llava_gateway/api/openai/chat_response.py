"""The answers of `/v1/chat/completions`, whole and streamed."""

from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.api.openai.sampling import StreamOptions
from llava_gateway.api.openai.streaming import ChunkFramer, JsonList, answer_fields, render_answer, render_finish_reason
from llava_gateway.http.response import Parts
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta, FinishReason, TokenLogprob, ToolCallDelta, Usage


async def collect_chat_completion(deltas: DeltaStream, model: str, *, logprobs: bool, functions: bool = False) -> Parts:
    """Wait for a whole answer, and return its `chat.completion` as JSON in parts. Raises the engine's error.

    `functions`: whether the request has the older form of tools, `functions`.
    """
    choices: dict[int, ChatChoice] = {}
    await deltas.collect(lambda delta: choices.setdefault(delta.index, ChatChoice()).add(delta))
    rendered = [choices[index].render(index, logprobs=logprobs, functions=functions) for index in sorted(choices)]
    return render_answer(answer_fields("chatcmpl", "chat.completion", model), rendered, deltas.usage)


class ChatChoice:
    """One choice of a chat completion, collected delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: list[tuple[ToolCallDelta, list[str]]] = []
        """The first piece of each call, and all pieces of its arguments."""
        self._logprobs = JsonList()
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta of this choice."""
        self._texts.append(delta.text)
        for call in delta.tool_calls:
            if call.id:
                self._calls.append((call, []))
            self._calls[-1][1].append(call.arguments)
        self._logprobs.extend([_render_token(each) for each in delta.logprobs])
        self._finish_reason = delta.finish_reason

    def render(self, index: int, *, logprobs: bool, functions: bool) -> Parts:
        """Return the choice as JSON in parts."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        if self._calls:
            message["content"] = message["content"] or None
            calls = [_render_call(call, "".join(arguments)) for call, arguments in self._calls]
            message |= {"function_call": calls[0]["function"]} if functions else {"tool_calls": calls}
        start = b'{"index":%d,"message":%b,"logprobs":' % (index, orjson.dumps(message))
        end = b',"finish_reason":%b}' % _render_finish_reason(self._finish_reason, functions=functions)
        if not logprobs:
            return [start + b"null" + end]
        return [start + b'{"content":', self._logprobs.close(), b',"refusal":null}' + end]


class ChatChunkRenderer:
    """Renders the deltas of one stream as `chat.completion.chunk` events."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None, *, choices: int, functions: bool = False) -> None:
        """`functions`: whether the request has the older form of tools, `functions`."""
        self._functions = functions
        self._framer = ChunkFramer(answer_fields("chatcmpl", "chat.completion.chunk", model), usage, options)
        # SDKs number the choices in the order in which these first appear, and some SDKs fail if a choice has no role.
        self._roles = b"".join(self._render_choice(index, b'{"role":"assistant","content":""}') for index in range(choices))

    def render_delta(self, delta: Delta) -> bytes:
        """Return the events for a delta. There are none if the delta has no text, no call, no log probability and no finish reason.

        The events with the roles of all choices come before the first delta.
        """
        events, self._roles = self._roles, b""
        if delta.text or delta.logprobs:
            logprobs = orjson.dumps(_render_logprobs(delta.logprobs)) if delta.logprobs else b"null"
            events += self._render_choice(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}", logprobs)
        for call in delta.tool_calls:
            events += self._render_choice(delta.index, orjson.dumps(_render_call_delta(call, functions=self._functions)))
        if delta.finish_reason is not None:
            finish_reason = _render_finish_reason(delta.finish_reason, functions=self._functions)
            events += self._render_choice(delta.index, b"{}", finish_reason=finish_reason)
        return events

    def render_end(self) -> bytes:
        """Return the events that end the stream."""
        return self._framer.end()

    def _render_choice(self, index: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        return self._framer.frame(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason))


def _render_finish_reason(finish_reason: FinishReason | None, *, functions: bool) -> bytes:
    return b'"function_call"' if functions and finish_reason == "tool_calls" else render_finish_reason(finish_reason)


def _render_call(call: ToolCallDelta, arguments: str) -> dict[str, Any]:
    """Return OpenAI's `ChatCompletionMessageToolCall`. `call`: the call's first piece."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _render_call_delta(call: ToolCallDelta, *, functions: bool) -> dict[str, Any]:
    """Return the `delta` of a chunk with a piece of a call. A chunk has one piece, because SDKs join a chunk's pieces wrongly."""
    function = {"arguments": call.arguments} if call.id is None else {"name": call.name, "arguments": call.arguments}
    if functions:
        return {"function_call": function}
    first = {} if call.id is None else {"id": call.id, "type": "function"}
    return {"tool_calls": [{"index": call.index, **first, "function": function}]}


def _render_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [_render_token(each) for each in logprobs], "refusal": None}


def _render_token(logprob: TokenLogprob) -> dict[str, Any]:
    """Return OpenAI's `ChatCompletionTokenLogprob`."""
    top = [_render_logprob(token, value) for token, value in logprob.top]
    return _render_logprob(logprob.token, logprob.logprob) | {"top_logprobs": top}


def _render_logprob(token: bytes, logprob: float) -> dict[str, Any]:
    """Return a token and its log probability. `token` shows U+FFFD for a part of a character; `bytes` is exact."""
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
