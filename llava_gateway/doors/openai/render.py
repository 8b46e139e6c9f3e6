"""What every answer of the OpenAI door is made of: ids, usage, errors, the head and tail of stream chunks."""

import time
from collections.abc import Iterable
from typing import Any

import orjson

from llava_gateway.chat import FinishReason, Usage
from llava_gateway.doors.openai.sampling import StreamOptions
from llava_gateway.errors import GatewayError
from llava_gateway.ids import new_id
from llava_gateway.web.reply import Parts, retry_after

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


def render_error(error: GatewayError) -> bytes:
    """OpenAI's `ErrorResponse`."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def error_headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    """When to retry. SDKs retry every 429 and 5xx by themselves, unless they are told that it is useless."""
    if error.retry_after is None and (error.status >= 500 or error.status == 429):
        return ((b"x-should-retry", b"false"),)
    return retry_after(error)
