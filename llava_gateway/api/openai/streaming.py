"""The parts that chat completions and text completions share: errors, usage, and the chunks of streams.

A whole answer is rendered delta by delta, so that a long answer does not block the event loop in one long step. A stream is rendered as
server-sent events, one chunk for each delta.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import orjson

from llava_gateway.api.openai.sampling import CompletionFields, StreamOptions
from llava_gateway.errors import GatewayError
from llava_gateway.http.response import Parts
from llava_gateway.model_info import ModelInfo
from llava_gateway.observability.context import new_id
from llava_gateway.types import FinishReason, Usage

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """The parts of an answer beside its text."""

    fingerprint: str = ""
    """`system_fingerprint`. Empty: answers have none."""
    logprobs: bool = False
    prompt_logprobs: int | None = None
    """The number of alternatives beside each token of the prompt. None: no log probabilities of the prompt."""
    token_ids: bool = False
    tokens_as_ids: bool = False
    """Whether log probabilities show a token as `token_id:` and its number."""
    functions: bool = False
    """Whether the request has the older form of tools, `functions`, so that the answer has it, too."""
    end_with_content: bool = False
    """Whether the chunk with the finish reason has an empty `content`. SambaNova's LangChain client fails on the usage without it."""

    @classmethod
    def of(
        cls, request: CompletionFields, model: ModelInfo, *, logprobs: bool, functions: bool = False, end_with_content: bool = False
    ) -> Self:
        """Return the options for the answer of `model` to a request.

        `logprobs`: whether the request asks for log probabilities. `functions`, `end_with_content`: as in the class.
        """
        return cls(
            fingerprint=model.fingerprint,
            logprobs=logprobs,
            prompt_logprobs=request.prompt_logprobs,
            token_ids=bool(request.return_token_ids),
            tokens_as_ids=bool(request.return_tokens_as_token_ids),
            functions=functions,
            end_with_content=end_with_content,
        )


def error_body(error: GatewayError) -> bytes:
    """Return OpenAI's `ErrorResponse` as JSON."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def render_usage(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's `CompletionUsage`. Image and video tokens are among the prompt's tokens, and named in their details."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "video_tokens": usage.video_tokens,
            "text_tokens": usage.text_tokens,
        },
        "completion_tokens_details": {"text_tokens": usage.completion_tokens},
    }


def answer_fields(id_prefix: str, object_type: str, model: str, fingerprint: str) -> dict[str, Any]:
    """Return the first fields of a whole answer. Every chunk of a stream repeats them."""
    fields = {"id": f"{id_prefix}-{new_id()}", "object": object_type, "created": int(time.time()), "model": model}
    return fields | {"system_fingerprint": fingerprint} if fingerprint else fields


def render_answer(fields: dict[str, Any], choices: Iterable[Parts], usage: Usage, more: Parts = ()) -> Parts:
    """Return a whole answer as JSON in parts. `choices`: the JSON of each choice, in parts. `more`: further fields, each after a comma."""
    parts: list[bytes | bytearray] = [orjson.dumps(fields)[:-1]]
    separator = b',"choices":['
    for choice in choices:
        parts += [separator, *choice]
        separator = b","
    return [*parts, b'],"usage":' + orjson.dumps(render_usage(usage)), *more, b"}"]


NO_LOGPROBS = b'"logprobs":null'
NOT_FINISHED = b'"finish_reason":null'


def render_end_of_choice(finish_reason: FinishReason | Literal["function_call"] | None, stopped_by: str | int | None) -> bytes:
    """Return the field `finish_reason` and, of a choice that has ended, vLLM's field `stop_reason`."""
    if finish_reason is None:
        return NOT_FINISHED
    return b'"finish_reason":"%b","stop_reason":%b' % (finish_reason.encode(), orjson.dumps(stopped_by))


def render_token_ids(name: str, token_ids: Sequence[int]) -> bytes:
    """Return vLLM's field `token_ids` or `prompt_token_ids`, after a comma."""
    return b',"' + name.encode() + b'":' + orjson.dumps(list(token_ids))


def token_name(token_id: int) -> str:
    """Return vLLM's name of a token for a request with `return_tokens_as_token_ids`."""
    return f"token_id:{token_id}"


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

    def unclosed(self) -> bytearray:
        """Return the list's JSON without its last bracket, for a longer list. The list must not grow afterwards."""
        return self.close()[:-1]

    def close_after(self) -> bytearray:
        """Return the JSON that follows the `unclosed` JSON of another list, which may not be empty. The list must not grow afterwards."""
        rest = self.close()
        rest[:1] = b"," if len(rest) > 2 else b""
        return rest


class ChunkFramer:
    """Frames the choices of one stream as server-sent events. The repeated fields are rendered once, since `frame` runs for every token."""

    def __init__(self, fields: dict[str, Any], usages: Sequence[Usage], options: StreamOptions | None) -> None:
        """`fields`: the first fields of every chunk. `usages`: the tokens so far, of each prompt and its answer."""
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(self._include_usage and options and options.continuous_usage_stats)
        self._start = b"data: " + orjson.dumps(fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._usages = usages

    def frame(self, choice: bytes) -> bytes:
        """Return the event for a chunk with one choice, given as JSON."""
        return self._start + choice + (self._end_with_usage() if self._continuous else self._end)

    def text_frame(self, choice: bytes) -> tuple[bytes, bytes] | None:
        """Return the event for a chunk in two parts, between which a text stands. None: every chunk has another usage.

        `choice`: the choice as JSON, with a NUL for the text.
        """
        if self._continuous:
            return None
        start, end = choice.split(b"\0")
        return self._start + start, end + self._end

    def end(self) -> bytes:
        """Return the events that end the stream."""
        return (self._start + self._end_with_usage() if self._include_usage else b"") + DONE

    def _end_with_usage(self) -> bytes:
        total = Usage()
        for usage in self._usages:
            total.add(usage)
        return b'],"usage":' + orjson.dumps(render_usage(total)) + b"}\n\n"
