"""The answers of `/v1/chat/completions`, whole and streamed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.api.openai.prompt_response import render_prompt_fields
from llava_gateway.api.openai.sampling import StreamOptions
from llava_gateway.api.openai.streaming import (
    NO_LOGPROBS,
    NOT_FINISHED,
    ChunkFramer,
    JsonList,
    RenderOptions,
    answer_fields,
    render_answer,
    render_end_of_choice,
    render_token_ids,
    token_name,
)
from llava_gateway.http.response import Parts
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta, FinishReason, TokenLogprob, ToolCallDelta

_CHOICE = b'{"index":%d,"delta":%b,%b,%b}'
"""A choice of a chunk: its index, delta, log probabilities and end."""


async def collect_chat_completion(deltas: DeltaStream, model: str, options: RenderOptions) -> Parts:
    """Wait for a whole answer, and return its `chat.completion` as JSON in parts. Raises the engine's error."""
    choices: dict[int, ChatChoice] = {}
    await deltas.collect(lambda delta: choices.setdefault(delta.index, ChatChoice(options)).add(delta))
    rendered = [choices[index].render(index) for index in sorted(choices)]
    more = await render_prompt_fields(deltas, options)
    return render_answer(answer_fields("chatcmpl", "chat.completion", model, options.fingerprint), rendered, deltas.usage, more)


class ChatChoice:
    """One choice of a chat completion, collected delta by delta."""

    def __init__(self, options: RenderOptions) -> None:
        self._options = options
        self._texts: list[str] = []
        self._calls: list[tuple[ToolCallDelta, list[str]]] = []
        """The first piece of each call, and all pieces of its arguments."""
        self._logprobs = JsonList()
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._stopped_by: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta of this choice."""
        self._texts.append(delta.text)
        for call in delta.tool_calls:
            if call.id:
                self._calls.append((call, []))
            self._calls[-1][1].append(call.arguments)
        self._logprobs.extend(_render_tokens(delta.logprobs, self._options))
        self._token_ids += delta.token_ids
        self._finish_reason, self._stopped_by = delta.finish_reason, delta.stopped_by

    def render(self, index: int) -> Parts:
        """Return the choice as JSON in parts."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        if self._calls:
            message["content"] = message["content"] or None
            calls = [_render_call(call, "".join(arguments)) for call, arguments in self._calls]
            message |= {"function_call": calls[0]["function"]} if self._options.functions else {"tool_calls": calls}
        start = b'{"index":%d,"message":%b,' % (index, orjson.dumps(message))
        token_ids = render_token_ids("token_ids", self._token_ids) if self._options.token_ids else b""
        end = token_ids + b"," + _render_end(self._finish_reason, self._stopped_by, self._options) + b"}"
        if not self._options.logprobs:
            return [start + NO_LOGPROBS + end]
        return [start + b'"logprobs":{"content":', self._logprobs.close(), b',"refusal":null}' + end]


class ChatChunkRenderer:
    """Renders the deltas of one stream as `chat.completion.chunk` events."""

    def __init__(
        self, model: str, deltas: DeltaStream, stream_options: StreamOptions | None, options: RenderOptions, *, choices: int
    ) -> None:
        self._deltas = deltas
        self._stream_options = stream_options
        self._options = options
        self._choices = choices
        self._fields = answer_fields("chatcmpl", "chat.completion.chunk", model, options.fingerprint)
        self._framer = ChunkFramer(self._fields, [deltas.usage], stream_options)
        self._started = False

    def render_delta(self, delta: Delta) -> bytes:
        """Return the events for a delta. There are none if the delta has no text, no call, no token to show and no finish reason.

        The events with the roles of all choices come before the first delta.
        """
        events = b""
        if not self._started:
            self._started = True
            events = self._render_roles()
        if delta.text or delta.logprobs or delta.token_ids:
            logprobs = self._render_tokens(delta) if delta.logprobs or delta.token_ids else NO_LOGPROBS
            events += self._render_choice(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}", logprobs)
        for call in delta.tool_calls:
            events += self._render_choice(delta.index, orjson.dumps(_render_call_delta(call, functions=self._options.functions)))
        if delta.finish_reason is not None:
            last = b'{"content":""}' if self._options.end_with_content else b"{}"
            events += self._render_choice(delta.index, last, end=_render_end(delta.finish_reason, delta.stopped_by, self._options))
        return events

    def text_frame(self) -> tuple[bytes, bytes] | None:
        """Return the event for a delta of the only choice that has nothing but text, in the parts before and after the text.

        None: such a delta needs `render_delta`.
        """
        if not self._started or self._options.token_ids:
            return None
        return self._framer.text_frame(_CHOICE % (0, b'{"content":\0}', NO_LOGPROBS, NOT_FINISHED))

    def render_end(self) -> bytes:
        """Return the events that end the stream."""
        return self._framer.end()

    def _render_roles(self) -> bytes:
        """Return the first events: one with the role for each choice, with a usage that counts no token of the answer.

        SDKs number the choices in the order in which these first appear, and some SDKs fail if a choice has no role.
        """
        usages = [dataclasses.replace(self._deltas.usage, completion_tokens=0)]
        framer = ChunkFramer(self._fields, usages, self._stream_options)
        first = framer
        if self._options.token_ids:
            fields = self._fields | {"prompt_token_ids": list(self._deltas.prompt_token_ids)}
            first = ChunkFramer(fields, usages, self._stream_options)
        choices = (_CHOICE % (index, b'{"role":"assistant","content":""}', NO_LOGPROBS, NOT_FINISHED) for index in range(self._choices))
        return first.frame(next(choices)) + b"".join(map(framer.frame, choices))

    def _render_tokens(self, delta: Delta) -> bytes:
        logprobs = NO_LOGPROBS
        if delta.logprobs:
            logprobs = b'"logprobs":' + orjson.dumps({"content": _render_tokens(delta.logprobs, self._options), "refusal": None})
        return logprobs + render_token_ids("token_ids", delta.token_ids) if self._options.token_ids else logprobs

    def _render_choice(self, index: int, delta: bytes, logprobs: bytes = NO_LOGPROBS, end: bytes = NOT_FINISHED) -> bytes:
        return self._framer.frame(_CHOICE % (index, delta, logprobs, end))


def _render_end(finish_reason: FinishReason | None, stopped_by: str | int | None, options: RenderOptions) -> bytes:
    """Return the fields that end a choice. The older form of tools has a finish reason of its own."""
    older = options.functions and finish_reason == "tool_calls"
    return render_end_of_choice("function_call" if older else finish_reason, stopped_by)


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


def _render_tokens(logprobs: Sequence[TokenLogprob], options: RenderOptions) -> list[dict[str, Any]]:
    """Return OpenAI's `ChatCompletionTokenLogprob` for each token."""
    tokens = [render_logprob(each) for each in logprobs]
    if options.tokens_as_ids:
        for logprob, token in zip(logprobs, tokens, strict=True):
            token["token"] = token_name(logprob.token_id)
            for token_id, top in zip(logprob.top_ids, token["top_logprobs"], strict=True):
                top["token"] = token_name(token_id)
    return tokens


def render_logprob(logprob: TokenLogprob) -> dict[str, Any]:
    """Return OpenAI's `ChatCompletionTokenLogprob`."""
    top = [_render_token_logprob(token, value) for token, value in logprob.top]
    return _render_token_logprob(logprob.token, logprob.logprob) | {"top_logprobs": top}


def _render_token_logprob(token: bytes, logprob: float) -> dict[str, Any]:
    """Return a token and its log probability. `token` shows U+FFFD for a part of a character; `bytes` is exact."""
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
