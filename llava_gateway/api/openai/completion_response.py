"""The answers of `/v1/completions`, whole and streamed."""

import codecs
from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.api.openai.sampling import StreamOptions
from llava_gateway.api.openai.streaming import ChunkFramer, JsonList, answer_fields, render_answer, render_finish_reason
from llava_gateway.http.response import Parts
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.types import Delta, FinishReason, TokenLogprob, Usage


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
    return render_answer(answer_fields("cmpl", "text_completion", model), numbered, usage)


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
        end = b',"finish_reason":' + render_finish_reason(self._finish_reason)
        return [*parts, (b"}" if logprobs else b"null") + end]


class TextChunkRenderer:
    """Renders the deltas of one stream as `text_completion` events."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None) -> None:
        self._framer = ChunkFramer(answer_fields("cmpl", "text_completion", model), usage, options)
        self._logprobs: dict[int, TextLogprobsRenderer] = {}

    def render_delta(self, delta: Delta) -> bytes:
        """Return the event for a delta. There is none if the delta has no text, no log probability and no finish reason."""
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = orjson.dumps(self._logprobs.setdefault(delta.index, TextLogprobsRenderer()).render(delta.logprobs))
        text, finish_reason = orjson.dumps(delta.text), render_finish_reason(delta.finish_reason)
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
