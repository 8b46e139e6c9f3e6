"""From the core's deltas and errors to SambaStudio's predictions, stream responses and errors."""

import codecs
import time
from typing import Any

import orjson

from llava_gateway.errors import GatewayError
from llava_gateway.http.response import ResponseWriter, retry_after
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import Delta, TokenLogprob


class Prediction:
    """What one prompt comes to."""

    def __init__(self, prepared: PreparedRequest, answer: DeltaStream) -> None:
        self._with_logprobs = bool(prepared.sampling.logprobs)
        self._answer = answer
        self._text = ""
        self._tokens: list[TokenLogprob] = []
        self._stop_reason = ""

    def add(self, delta: Delta) -> None:
        self._text += delta.text
        self._tokens += delta.logprobs
        if delta.finish_reason is not None:
            self._stop_reason = _stop_reason(delta)

    def render(self) -> dict[str, Any]:
        usage = self._answer.usage
        return {
            "completion": self._text,
            "logprobs": _logprobs(self._tokens if self._with_logprobs else []),
            "prompt": self._answer.prompt,
            "stop_reason": self._stop_reason,
            "tokens": [_spell(entry.token) for entry in self._tokens],
            "total_tokens_count": usage.prompt_tokens + usage.completion_tokens,
        }


class Stopwatch:
    """Times of one stream, in seconds, from when its request had been read."""

    def __init__(self) -> None:
        self._began = time.time()
        self._start = time.perf_counter()
        self._first: tuple[float, int] | None = None

    def add(self, delta: Delta) -> None:
        if self._first is None:
            self._first = time.perf_counter() - self._start, delta.tokens

    def render(self, answer: DeltaStream) -> dict[str, Any]:
        """The counts and times that a stream ends with."""
        usage = answer.usage
        seconds = time.perf_counter() - self._start
        to_first, tokens = self._first or (seconds, 0)
        return {
            "prompt_tokens_count": usage.prompt_tokens,
            "completion_tokens_count": usage.completion_tokens,
            "start_time": self._began,
            "end_time": self._began + seconds,
            "model_execution_time": seconds,
            "time_to_first_token": to_first,
            "throughput_after_first_token": (usage.completion_tokens - tokens) / max(seconds - to_first, 1e-9),
            "batch_size_used": 1,
        }


def status(seconds: float) -> dict[str, Any]:
    """Of a request that took so long."""
    return {"complete": True, "exitCode": 0, "elapsedTime": seconds, "message": "", "progress": 1, "progressMessage": "", "reason": ""}


def piece(text: str) -> dict[str, Any]:
    """A stream's response, but for the last. One without text says nothing."""
    return {"stream_token": text, "is_last_response": False}


def line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value) + b"\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """An error as a response, or as the last line of a stream if the status line has left."""
    await _render_error(error, response, line(_failure(error)))


async def render_error_event(error: GatewayError, response: ResponseWriter) -> None:
    """As `fail`, where the stream is of server-sent events."""
    await _render_error(error, response, b"event: error_event\n" + event(_failure(error)))


async def _render_error(error: GatewayError, response: ResponseWriter, last: bytes) -> None:
    if response.started:
        await response.frames(last)
        await response.end()
    else:
        await response.json(error.status, {"detail": _detail(error)}, retry_after(error))


def _failure(error: GatewayError) -> dict[str, Any]:
    return {
        "status_code": error.status,
        "error": {"code": error.code or error.type, "message": _detail(error), "details": error.param or ""},
    }


def _detail(error: GatewayError) -> str:
    """The message, which names the field."""
    return error.message if error.param is None or error.param in error.message else f"{error.param}: {error.message}"


def _stop_reason(delta: Delta) -> str:
    if delta.finish_reason == "length":
        return "max_len_reached"
    return "stop_sequence" if isinstance(delta.stopped_by, str) else "end_of_text"


def _logprobs(tokens: list[TokenLogprob]) -> dict[str, Any]:
    """`text_offset` counts characters from the beginning of the completion."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offset, offsets, tops = 0, [], []
    for entry in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(entry.token))
        top: dict[str, float] = {}
        for token, logprob in entry.top:
            top.setdefault(_spell(token), logprob)  # two tokens may be spelt alike: the likelier comes first
        tops.append(top)
    return {"text_offset": offsets, "top_logprobs": tops}


def _spell(token: bytes) -> str:
    """A token as text; half a character as LLaMA's vocabulary writes bytes, `<0xF0>`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in token)
