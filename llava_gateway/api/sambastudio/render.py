"""Rendering deltas and errors as SambaStudio's predictions, stream responses and errors."""

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
    """The answer to one prompt, collected delta by delta."""

    def __init__(self, prepared: PreparedRequest, deltas: DeltaStream) -> None:
        self._with_logprobs = bool(prepared.sampling.logprobs)
        self._deltas = deltas
        self._text = ""
        self._tokens: list[TokenLogprob] = []
        self._stop_reason = ""

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self._text += delta.text
        self._tokens += delta.logprobs
        if delta.finish_reason is not None:
            self._stop_reason = _stop_reason(delta)

    def render(self) -> dict[str, Any]:
        """Return the prediction."""
        usage = self._deltas.usage
        return {
            "completion": self._text,
            "logprobs": _render_logprobs(self._tokens if self._with_logprobs else []),
            "prompt": self._deltas.prompt,
            "stop_reason": self._stop_reason,
            "tokens": [_render_token(entry.token) for entry in self._tokens],
            "total_tokens_count": usage.prompt_tokens + usage.completion_tokens,
        }


class Stopwatch:
    """Measures one stream from the arrival of its request on, in seconds."""

    def __init__(self) -> None:
        self._start_time = time.time()
        self._start = time.perf_counter()
        self._first_delta: tuple[float, int] | None = None
        """The time to the first delta, and that delta's tokens."""

    def add(self, delta: Delta) -> None:
        """Measure the time to a delta, if it is the first."""
        if self._first_delta is None:
            self._first_delta = time.perf_counter() - self._start, delta.tokens

    def render(self, deltas: DeltaStream) -> dict[str, Any]:
        """Return the token counts and times for the last response of the stream."""
        usage = deltas.usage
        seconds = time.perf_counter() - self._start
        seconds_to_first, first_tokens = self._first_delta or (seconds, 0)
        return {
            "prompt_tokens_count": usage.prompt_tokens,
            "completion_tokens_count": usage.completion_tokens,
            "start_time": self._start_time,
            "end_time": self._start_time + seconds,
            "model_execution_time": seconds,
            "time_to_first_token": seconds_to_first,
            "throughput_after_first_token": (usage.completion_tokens - first_tokens) / max(seconds - seconds_to_first, 1e-9),
            "batch_size_used": 1,
        }


def render_status(seconds: float) -> dict[str, Any]:
    """Return the status of a request that has taken `seconds`."""
    return {"complete": True, "exitCode": 0, "elapsedTime": seconds, "message": "", "progress": 1, "progressMessage": "", "reason": ""}


def stream_response(text: str) -> dict[str, Any]:
    """Return a response of a stream, except the last one. An empty text only keeps the connection alive."""
    return {"stream_token": text, "is_last_response": False}


def json_line(value: dict[str, Any]) -> bytes:
    """Return the value as a line of JSON."""
    return orjson.dumps(value) + b"\n"


def server_sent_event(value: dict[str, Any]) -> bytes:
    """Return the value as a server-sent event with JSON."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error: as the response, or as the last line of a stream that has started."""
    await _render_error(error, response, json_line(_stream_error(error)))


async def render_error_event(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error: as the response, or as the last server-sent event of a stream that has started."""
    await _render_error(error, response, b"event: error_event\n" + server_sent_event(_stream_error(error)))


async def _render_error(error: GatewayError, response: ResponseWriter, last_frame: bytes) -> None:
    if response.started:
        await response.frames(last_frame)
        await response.end()
    else:
        await response.json(error.status, {"detail": error.message_with_param}, retry_after(error))


def _stream_error(error: GatewayError) -> dict[str, Any]:
    return {
        "status_code": error.status,
        "error": {"code": error.code or error.type, "message": error.message_with_param, "details": error.param or ""},
    }


def _stop_reason(delta: Delta) -> str:
    if delta.finish_reason == "length":
        return "max_len_reached"
    return "stop_sequence" if isinstance(delta.stopped_by, str) else "end_of_text"


def _render_logprobs(tokens: list[TokenLogprob]) -> dict[str, Any]:
    """Return the field `logprobs`. `text_offset`: characters from the beginning of the completion."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offset, offsets, tops = 0, [], []
    for entry in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(entry.token))
        top: dict[str, float] = {}
        for token, logprob in entry.top:
            top.setdefault(_render_token(token), logprob)  # tokens with the same text: the likeliest comes first and is kept
        tops.append(top)
    return {"text_offset": offsets, "top_logprobs": tops}


def _render_token(token: bytes) -> str:
    """Return a token as text. A part of a character shows as bytes in the form of LLaMA's vocabulary, such as `<0xF0>`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in token)
