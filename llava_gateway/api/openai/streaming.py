"""From the core's deltas to OpenAI's `chat.completion` and `chat.completion.chunk`."""

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


def head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that every object begins with, and every chunk of a stream repeats."""
    return {"id": f"{prefix}-{new_id()}", "object": kind, "created": int(time.time()), "model": model}


def render_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's `CompletionUsage`; image tokens are counted among the prompt's and named in its details."""
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


class JsonList:
    """A list in JSON that grows. Values are rendered as they come: a long list is never rendered at once, and it is text, not objects that
    the garbage collector has to look through."""

    def __init__(self) -> None:
        self._json = bytearray(b"[")

    def extend(self, values: list[Any]) -> None:
        if values:
            self._json += orjson.dumps(values)[1:-1] + b","

    def end(self) -> bytearray:
        """Its JSON; it grows no more."""
        self._json[max(len(self._json) - 1, 1) :] = b"]"
        return self._json


def whole(head: dict[str, Any], choices: Iterable[Parts], usage: Usage) -> Parts:
    """A whole answer in JSON, in parts, from parts of its choices."""
    parts: list[bytes | bytearray] = [orjson.dumps(head)[:-1]]
    begin = b',"choices":['
    for choice in choices:
        parts += [begin, *choice]
        begin = b","
    return [*parts, b'],"usage":' + orjson.dumps(render_usage(usage)) + b"}"]


def quoted(finish_reason: FinishReason | None) -> bytes:
    return b'"' + finish_reason.encode() + b'"' if finish_reason else b"null"


class ChunkFrame:
    """Choices to framed chunks. What does not change from chunk to chunk is rendered once: this runs for every token of every stream."""

    def __init__(self, head: dict[str, Any], usage: Usage, options: StreamOptions | None) -> None:
        """`usage` is the answer's, which goes on counting."""
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(self._include_usage and options and options.continuous_usage_stats)
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._usage = usage

    def chunk(self, choice: bytes) -> bytes:
        if self._continuous:
            return self._head + choice + self._with_usage()
        return self._head + choice + self._tail

    def end(self) -> bytes:
        """The frames that end a stream."""
        return (self._head + self._with_usage() if self._include_usage else b"") + DONE

    def _with_usage(self) -> bytes:
        return b'],"usage":' + orjson.dumps(render_usage(self._usage)) + b"}\n\n"


def error_body(error: GatewayError) -> bytes:
    """OpenAI's `ErrorResponse`."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def error_headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    """When to retry. SDKs retry every 429 and 5xx by themselves, unless they are told that it is useless."""
    if error.retry_after is None and (error.status >= 500 or error.status == 429):
        return ((b"x-should-retry", b"false"),)
    return retry_after(error)


async def completion(answer: DeltaStream, model: str, *, logprobs: bool) -> Parts:
    """A `chat.completion` in JSON, in parts."""
    choices: dict[int, _ChatChoice] = {}
    await answer.collect(lambda delta: choices.setdefault(delta.index, _ChatChoice()).add(delta))
    ordered = [choices[index].render(index, logprobs=logprobs) for index in sorted(choices)]
    return whole(head("chatcmpl", "chat.completion", model), ordered, answer.usage)


class _ChatChoice:
    """A choice that becomes whole delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs = JsonList()
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._logprobs.extend([_entry(each) for each in delta.logprobs])
        self._finish_reason = delta.finish_reason

    def render(self, index: int, *, logprobs: bool) -> Parts:
        """Its JSON, in parts."""
        message = orjson.dumps({"role": "assistant", "content": "".join(self._texts), "refusal": None})
        begin = b'{"index":%d,"message":%b,"logprobs":' % (index, message)
        end = b',"finish_reason":%b}' % quoted(self._finish_reason)
        if not logprobs:
            return [begin + b"null" + end]
        return [begin + b'{"content":', self._logprobs.end(), b',"refusal":null}' + end]


class ChunkRenderer:
    """Deltas to framed chunks."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None, *, choices: int) -> None:
        self._frame = ChunkFrame(head("chatcmpl", "chat.completion.chunk", model), usage, options)
        # The role of each choice, in order: SDKs number choices as they first see them, and some fail without a role.
        self._roles = b"".join(self._chunk(index, b'{"role":"assistant","content":""}') for index in range(choices))

    def push(self, delta: Delta) -> bytes:
        """The frames that a delta makes: none, while it holds no whole character. Roles come before the first."""
        frames, self._roles = self._roles, b""
        if delta.text or delta.logprobs:
            logprobs = orjson.dumps(render_logprobs(delta.logprobs)) if delta.logprobs else b"null"
            frames += self._chunk(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}", logprobs)
        if delta.finish_reason is not None:
            frames += self._chunk(delta.index, b"{}", finish_reason=quoted(delta.finish_reason))
        return frames

    def end(self) -> bytes:
        return self._frame.end()

    def _chunk(self, index: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        return self._frame.chunk(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason))


def render_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`content` has one entry for each token. A token that is not whole characters shows U+FFFD; its `bytes` are exact."""
    return {"content": [_entry(each) for each in logprobs], "refusal": None}


def _entry(logprob: TokenLogprob) -> dict[str, Any]:
    top = [_logprob(token, value) for token, value in logprob.top]
    return _logprob(logprob.token, logprob.logprob) | {"top_logprobs": top}


def _logprob(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


async def text_choices(answer: DeltaStream, *, logprobs: bool) -> list[Parts]:
    """The choices of one prompt, in order: what is within their JSON's braces, in parts, but for the index."""
    choices: dict[int, _TextChoice] = {}
    await answer.collect(lambda delta: choices.setdefault(delta.index, _TextChoice()).add(delta))
    return [choices[index].render(logprobs=logprobs) for index in sorted(choices)]


def text_completion(choices: list[Parts], usage: Usage, model: str) -> Parts:
    """A `text_completion` in JSON, in parts, of all prompts' choices."""
    numbered = ([b'{"index":%d,' % index, *choice, b"}"] for index, choice in enumerate(choices))
    return whole(head("cmpl", "text_completion", model), numbered, usage)


class TextChunkRenderer:
    """Deltas to framed chunks."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None) -> None:
        self._frame = ChunkFrame(head("cmpl", "text_completion", model), usage, options)
        self._logprobs: dict[int, _TextLogprobs] = {}

    def push(self, delta: Delta) -> bytes:
        """The frame that a delta makes: none, while it holds no whole character."""
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = orjson.dumps(self._logprobs.setdefault(delta.index, _TextLogprobs()).render(delta.logprobs))
        reason, text = quoted(delta.finish_reason), orjson.dumps(delta.text)
        return self._frame.chunk(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (delta.index, text, logprobs, reason))

    def end(self) -> bytes:
        return self._frame.end()


class _TextChoice:
    """A choice that becomes whole delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._rendered = _TextLogprobs()
        self._logprobs = {name: JsonList() for name in self._rendered.render(())}
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._finish_reason = delta.finish_reason
        if delta.logprobs:
            for name, values in self._rendered.render(delta.logprobs).items():
                self._logprobs[name].extend(values)

    def render(self, *, logprobs: bool) -> Parts:
        parts: list[bytes | bytearray] = [b'"text":' + orjson.dumps("".join(self._texts)) + b',"logprobs":']
        if logprobs:
            begin = b"{"
            for name, values in self._logprobs.items():
                parts += [begin + b'"' + name.encode() + b'":', values.end()]
                begin = b","
        end = b',"finish_reason":' + quoted(self._finish_reason)
        return [*parts, (b"}" if logprobs else b"null") + end]


class _TextLogprobs:
    """The log probabilities of one choice. `text_offset` counts characters from the beginning of its text."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def render(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(entry.token))
        return {
            "tokens": [_text_token(entry.token) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{_text_token(token): logprob for token, logprob in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }


def _text_token(token: bytes) -> str:
    """A token as OpenAI's plain completions show it: half a character as its bytes, so that two of them stay two."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
