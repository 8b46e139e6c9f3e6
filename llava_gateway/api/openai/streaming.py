"""Rendering answers and errors in OpenAI's shapes: first the shared parts, then chats, then text completions.

A whole answer is rendered delta by delta, so that a long answer does not block the event loop in one long step. A stream is rendered as
server-sent events, one chunk for each delta.
"""

import codecs
import time
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from llava_gateway.api.openai.sampling import StreamOptions
from llava_gateway.errors import GatewayError
from llava_gateway.http.response import Parts, retry_after
from llava_gateway.observability.context import new_id
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta, FinishReason, TokenLogprob, Usage

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


def error_body(error: GatewayError) -> bytes:
    """Return OpenAI's `ErrorResponse` as JSON."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def error_headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that say when to retry. SDKs retry every 429 and 5xx unless `x-should-retry` forbids it."""
    if error.retry_after is None and (error.status >= 500 or error.status == 429):
        return ((b"x-should-retry", b"false"),)
    return retry_after(error)


def render_usage(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's `CompletionUsage`. Image tokens are among the prompt's tokens, and named in their details."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
        },
        "completion_tokens_details": {"text_tokens": usage.completion_tokens},
    }


def _answer_fields(id_prefix: str, object_type: str, model: str) -> dict[str, Any]:
    """Return the first fields of a whole answer. Every chunk of a stream repeats them."""
    return {"id": f"{id_prefix}-{new_id()}", "object": object_type, "created": int(time.time()), "model": model}


def _render_answer(fields: dict[str, Any], choices: Iterable[Parts], usage: Usage) -> Parts:
    """Return a whole answer as JSON in parts. `choices`: the JSON of each choice, in parts."""
    parts: list[bytes | bytearray] = [orjson.dumps(fields)[:-1]]
    separator = b',"choices":['
    for choice in choices:
        parts += [separator, *choice]
        separator = b","
    return [*parts, b'],"usage":' + orjson.dumps(render_usage(usage)) + b"}"]


def _render_finish_reason(finish_reason: FinishReason | None) -> bytes:
    return b'"' + finish_reason.encode() + b'"' if finish_reason else b"null"


class JsonList:
    """A growing list, held as JSON.

    Values are rendered when they arrive, so that a long list is not rendered in one step. JSON is one object for the garbage collector,
    which would otherwise look through all values.
    """

    def __init__(self) -> None:
        self._json = bytearray(b"[")

    def extend(self, values: list[Any]) -> None:
        """Render values and append them."""
        if values:
            self._json += orjson.dumps(values)[1:-1] + b","

    def close(self) -> bytearray:
        """Return the list's JSON. The list must not grow afterwards."""
        self._json[max(len(self._json) - 1, 1) :] = b"]"
        return self._json


class ChunkFramer:
    """Frames the choices of one stream as server-sent events. The repeated fields are rendered once, since `frame` runs for every token."""

    def __init__(self, fields: dict[str, Any], usage: Usage, options: StreamOptions | None) -> None:
        """`fields`: the first fields of every chunk. `usage`: the tokens that the answer has used so far, which the engine updates."""
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(self._include_usage and options and options.continuous_usage_stats)
        self._start = b"data: " + orjson.dumps(fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._usage = usage

    def frame(self, choice: bytes) -> bytes:
        """Return the event for a chunk with one choice, given as JSON."""
        return self._start + choice + (self._end_with_usage() if self._continuous else self._end)

    def end(self) -> bytes:
        """Return the events that end the stream."""
        return (self._start + self._end_with_usage() if self._include_usage else b"") + DONE

    def _end_with_usage(self) -> bytes:
        return b'],"usage":' + orjson.dumps(render_usage(self._usage)) + b"}\n\n"


# Chats


async def collect_chat_completion(deltas: DeltaStream, model: str, *, logprobs: bool) -> Parts:
    """Wait for a whole answer, and return its `chat.completion` as JSON in parts. Raises the engine's error."""
    choices: dict[int, ChatChoice] = {}
    await deltas.collect(lambda delta: choices.setdefault(delta.index, ChatChoice()).add(delta))
    rendered = [choices[index].render(index, logprobs=logprobs) for index in sorted(choices)]
    return _render_answer(_answer_fields("chatcmpl", "chat.completion", model), rendered, deltas.usage)


class ChatChoice:
    """One choice of a chat completion, collected delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs = JsonList()
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta of this choice."""
        self._texts.append(delta.text)
        self._logprobs.extend([_render_token(each) for each in delta.logprobs])
        self._finish_reason = delta.finish_reason

    def render(self, index: int, *, logprobs: bool) -> Parts:
        """Return the choice as JSON in parts."""
        message = orjson.dumps({"role": "assistant", "content": "".join(self._texts), "refusal": None})
        start = b'{"index":%d,"message":%b,"logprobs":' % (index, message)
        end = b',"finish_reason":%b}' % _render_finish_reason(self._finish_reason)
        if not logprobs:
            return [start + b"null" + end]
        return [start + b'{"content":', self._logprobs.close(), b',"refusal":null}' + end]


class ChatChunkRenderer:
    """Renders the deltas of one stream as `chat.completion.chunk` events."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None, *, choices: int) -> None:
        self._framer = ChunkFramer(_answer_fields("chatcmpl", "chat.completion.chunk", model), usage, options)
        # SDKs number the choices in the order in which these first appear, and some SDKs fail if a choice has no role.
        self._roles = b"".join(self._render_choice(index, b'{"role":"assistant","content":""}') for index in range(choices))

    def render_delta(self, delta: Delta) -> bytes:
        """Return the events for a delta. There are none if the delta has no text, no log probability and no finish reason.

        The events with the roles of all choices come before the first delta.
        """
        events, self._roles = self._roles, b""
        if delta.text or delta.logprobs:
            logprobs = orjson.dumps(_render_logprobs(delta.logprobs)) if delta.logprobs else b"null"
            events += self._render_choice(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}", logprobs)
        if delta.finish_reason is not None:
            events += self._render_choice(delta.index, b"{}", finish_reason=_render_finish_reason(delta.finish_reason))
        return events

    def render_end(self) -> bytes:
        """Return the events that end the stream."""
        return self._framer.end()

    def _render_choice(self, index: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        return self._framer.frame(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason))


def _render_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [_render_token(each) for each in logprobs], "refusal": None}


def _render_token(logprob: TokenLogprob) -> dict[str, Any]:
    """Return OpenAI's `ChatCompletionTokenLogprob`."""
    top = [_render_logprob(token, value) for token, value in logprob.top]
    return _render_logprob(logprob.token, logprob.logprob) | {"top_logprobs": top}


def _render_logprob(token: bytes, logprob: float) -> dict[str, Any]:
    """Return a token and its log probability. `token` shows U+FFFD for a part of a character; `bytes` is exact."""
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


# Text completions


async def collect_text_choices(deltas: DeltaStream, *, logprobs: bool) -> list[Parts]:
    """Wait for the choices of one prompt, and return them in order, each as the JSON that follows its index, in parts.

    Raises the engine's error.
    """
    choices: dict[int, TextChoice] = {}
    await deltas.collect(lambda delta: choices.setdefault(delta.index, TextChoice()).add(delta))
    return [choices[index].render(logprobs=logprobs) for index in sorted(choices)]


def render_text_completion(choices: list[Parts], usage: Usage, model: str) -> Parts:
    """Return a `text_completion` as JSON in parts. `choices`: those of all prompts, from `collect_text_choices`."""
    numbered = ([b'{"index":%d,' % index, *choice, b"}"] for index, choice in enumerate(choices))
    return _render_answer(_answer_fields("cmpl", "text_completion", model), numbered, usage)


class TextChoice:
    """One choice of a text completion, collected delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._renderer = TextLogprobsRenderer()
        self._logprobs = {name: JsonList() for name in self._renderer.render(())}
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta of this choice."""
        self._texts.append(delta.text)
        self._finish_reason = delta.finish_reason
        if delta.logprobs:
            for name, values in self._renderer.render(delta.logprobs).items():
                self._logprobs[name].extend(values)

    def render(self, *, logprobs: bool) -> Parts:
        """Return the choice as JSON in parts, without its braces and its index, which depends on the other prompts."""
        parts: list[bytes | bytearray] = [b'"text":' + orjson.dumps("".join(self._texts)) + b',"logprobs":']
        if logprobs:
            separator = b"{"
            for name, values in self._logprobs.items():
                parts += [separator + b'"' + name.encode() + b'":', values.close()]
                separator = b","
        end = b',"finish_reason":' + _render_finish_reason(self._finish_reason)
        return [*parts, (b"}" if logprobs else b"null") + end]


class TextChunkRenderer:
    """Renders the deltas of one stream as `text_completion` events."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None) -> None:
        self._framer = ChunkFramer(_answer_fields("cmpl", "text_completion", model), usage, options)
        self._logprobs: dict[int, TextLogprobsRenderer] = {}

    def render_delta(self, delta: Delta) -> bytes:
        """Return the event for a delta. There is none if the delta has no text, no log probability and no finish reason."""
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = orjson.dumps(self._logprobs.setdefault(delta.index, TextLogprobsRenderer()).render(delta.logprobs))
        text, finish_reason = orjson.dumps(delta.text), _render_finish_reason(delta.finish_reason)
        return self._framer.frame(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (delta.index, text, logprobs, finish_reason))

    def render_end(self) -> bytes:
        """Return the events that end the stream."""
        return self._framer.end()


class TextLogprobsRenderer:
    """Renders the log probabilities of one choice, and counts the characters of its tokens for `text_offset`."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def render(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Return OpenAI's `logprobs` for the next tokens. `text_offset`: characters from the beginning of the choice's text."""
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(entry.token))
        return {
            "tokens": [_render_text_token(entry.token) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{_render_text_token(token): logprob for token, logprob in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }


def _render_text_token(token: bytes) -> str:
    """Return a token as OpenAI's text completions show it. Parts of a character show as bytes, so that different tokens stay different."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
