"""The answers of `/v1/completions`, whole and streamed."""

import codecs
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from llava_gateway.api.openai.prompt_response import characters, prompt_tokens, render_prompt_fields
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
from llava_gateway.types import Delta, FinishReason, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt that each choice of an answer begins with."""

    text: str
    logprobs: int | None
    """The number of alternatives beside each token of the prompt. None: no log probabilities."""


async def collect_text_choices(deltas: DeltaStream, options: RenderOptions, echo: Echo | None = None) -> list[Parts]:
    """Wait for the choices of one prompt, and return them in order, each as the JSON that follows its index, in parts.

    The parts of the prompt are in memory once, however many choices repeat them. Raises the engine's error.
    """
    choices: dict[int, TextChoice] = {}
    offset = len(echo.text) if echo else 0
    await deltas.collect(lambda delta: choices.setdefault(delta.index, TextChoice(options, offset)).add(delta))
    prompt_text = orjson.dumps(echo.text)[1:-1] if echo else b""
    prompt_logprobs = await _collect_prompt(deltas, options, echo) if echo and echo.logprobs is not None else {}
    more = await render_prompt_fields(deltas, options)
    return [[*choices[index].render(prompt_text, prompt_logprobs), *more] for index in sorted(choices)]


async def _collect_prompt(deltas: DeltaStream, options: RenderOptions, echo: Echo) -> dict[str, bytearray]:
    """Return the lists of OpenAI's `logprobs` for the prompt's tokens, as JSON without the closing bracket."""
    renderer, lists = TextLogprobsRenderer(options), {name: JsonList() for name in LOGPROBS}
    async for values in renderer.render_prompt(deltas, echo):
        for name in LOGPROBS:
            lists[name].extend(values[name])
    return {name: values.unclosed() for name, values in lists.items()}


def render_text_completion(choices: list[Parts], usage: Usage, model: str, options: RenderOptions) -> Parts:
    """Return a `text_completion` as JSON in parts. `choices`: those of all prompts, from `collect_text_choices`."""
    numbered = ([b'{"index":%d,' % index, *choice, b"}"] for index, choice in enumerate(choices))
    return render_answer(answer_fields("cmpl", "text_completion", model, options.fingerprint), numbered, usage)


class TextChoice:
    """One choice of a text completion, collected delta by delta."""

    def __init__(self, options: RenderOptions, offset: int) -> None:
        """`offset`: the number of characters in the text before the answer."""
        self._options = options
        self._texts: list[str] = []
        self._renderer = TextLogprobsRenderer(options, offset)
        self._logprobs = {name: JsonList() for name in LOGPROBS}
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._stopped_by: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta of this choice."""
        self._texts.append(delta.text)
        self._finish_reason, self._stopped_by = delta.finish_reason, delta.stopped_by
        self._token_ids += delta.token_ids
        if delta.logprobs:
            for name, values in self._renderer.render(delta.logprobs).items():
                self._logprobs[name].extend(values)

    def render(self, prompt_text: bytes, prompt_logprobs: dict[str, bytearray]) -> Parts:
        """Return the choice as JSON in parts, without its braces and its index, which depends on the other prompts.

        `prompt_text`: JSON without quotation marks, before the answer's text. `prompt_logprobs`: the lists before those of the answer.
        """
        parts: list[bytes | bytearray] = [b'"text":"', prompt_text, orjson.dumps("".join(self._texts))[1:]]
        if self._options.logprobs:
            separator = b',"logprobs":{'
            for name, values in self._logprobs.items():
                rendered = [prompt_logprobs[name], values.close_after()] if prompt_logprobs else [values.close()]
                parts += [separator + b'"' + name.encode() + b'":', *rendered]
                separator = b","
            parts.append(b"}")
        else:
            parts.append(b"," + NO_LOGPROBS)
        if self._options.token_ids:
            parts.append(render_token_ids("token_ids", self._token_ids))
        return [*parts, b"," + render_end_of_choice(self._finish_reason, self._stopped_by)]


class TextChunkRenderer:
    """Renders the deltas of one prompt's choices as `text_completion` events."""

    def __init__(self, framer: ChunkFramer, options: RenderOptions, *, first_index: int = 0) -> None:
        """`framer`: the stream's, which may have the choices of other prompts, too. `first_index`: the number of the first choice."""
        self._framer = framer
        self._options = options
        self._first_index = first_index
        self._logprobs: dict[int, TextLogprobsRenderer] = {}

    async def render_prompt(self, deltas: DeltaStream, echo: Echo | None, *, choices: int) -> AsyncIterator[bytes]:
        """Yield the events with the prompt's part of each choice, which come before the first delta's event."""
        for index in range(choices):
            text = echo.text if echo else ""
            more = render_token_ids("prompt_token_ids", deltas.prompt_token_ids) if self._options.token_ids else b""
            if not echo or echo.logprobs is None:
                yield self._frame(index, text, NO_LOGPROBS + more)
                continue
            self._logprobs[index] = renderer = TextLogprobsRenderer(self._options)
            async for values in renderer.render_prompt(deltas, echo):
                yield self._frame(index, text, b'"logprobs":' + orjson.dumps(values) + more)
                text, more = "", b""

    def render_delta(self, delta: Delta) -> bytes:
        """Return the event for a delta. There is none if the delta has no text, no token to show and no finish reason."""
        if not (delta.text or delta.logprobs or delta.finish_reason or delta.token_ids):
            return b""
        logprobs = self._render_tokens(delta) if delta.logprobs or delta.token_ids else NO_LOGPROBS
        return self._frame(delta.index, delta.text, logprobs, render_end_of_choice(delta.finish_reason, delta.stopped_by))

    def text_frame(self) -> tuple[bytes, bytes] | None:
        """Return the event for a delta of the first choice that has nothing but text, in the parts before and after the text.

        None: such a delta needs `render_delta`.
        """
        return None if self._options.token_ids else self._framer.text_frame(self._choice(0, b"\0"))

    def _render_tokens(self, delta: Delta) -> bytes:
        logprobs = NO_LOGPROBS
        if delta.logprobs:
            renderer = self._logprobs.setdefault(delta.index, TextLogprobsRenderer(self._options))
            logprobs = b'"logprobs":' + orjson.dumps(renderer.render(delta.logprobs))
        return logprobs + render_token_ids("token_ids", delta.token_ids) if self._options.token_ids else logprobs

    def _frame(self, index: int, text: str, logprobs: bytes, end: bytes = NOT_FINISHED) -> bytes:
        return self._framer.frame(self._choice(index, orjson.dumps(text), logprobs, end))

    def _choice(self, index: int, text: bytes, logprobs: bytes = NO_LOGPROBS, end: bytes = NOT_FINISHED) -> bytes:
        return b'{"index":%d,"text":%b,%b,%b}' % (self._first_index + index, text, logprobs, end)


LOGPROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
"""The lists of OpenAI's `logprobs`."""


class TextLogprobsRenderer:
    """Renders the log probabilities of one choice, and counts the characters of its tokens for `text_offset`."""

    def __init__(self, options: RenderOptions, offset: int = 0) -> None:
        """`offset`: the number of characters in the text before the first token."""
        self._token = _token_by_id if options.tokens_as_ids else _token_by_text
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def render(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Return OpenAI's `logprobs` for the next tokens. `text_offset`: characters from the beginning of the choice's text."""
        offsets = []
        for entry in logprobs:
            offsets.append(max(self._offset, 0))
            self._offset += len(self._decoder.decode(entry.token))
        return {
            "tokens": [self._token(entry.token, entry.token_id) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [self._render_top(entry) for entry in logprobs],
            "text_offset": offsets,
        }

    async def render_prompt(self, deltas: DeltaStream, echo: Echo) -> AsyncIterator[dict[str, list[Any]]]:
        """Yield `logprobs` for the tokens of the prompt, piece by piece. The first token has no log probability.

        The text may lack the first characters of the tokens, such as `<s>`. So the offsets are counted from the end of the text.
        """
        if deltas.prompt_logprobs is None or echo.logprobs is None:
            return
        tokenizer = deltas.model.tokenizer
        self._offset = len(echo.text) - characters(deltas.prompt_token_ids, tokenizer)
        first = True
        async for piece in prompt_tokens(deltas.prompt_token_ids, deltas.prompt_logprobs, echo.logprobs, tokenizer):
            values = self.render(piece)
            if first:
                values["token_logprobs"][0] = values["top_logprobs"][0] = None
                first = False
            yield values

    def _render_top(self, entry: TokenLogprob) -> dict[str, float]:
        """Return the likeliest tokens, and the token itself, with their log probabilities."""
        top = {self._token(token, token_id): logprob for (token, logprob), token_id in zip(entry.top, entry.top_ids, strict=True)}
        top[self._token(entry.token, entry.token_id)] = entry.logprob
        return top


def _token_by_id(token: bytes, token_id: int) -> str:
    return token_name(token_id)


def _token_by_text(token: bytes, token_id: int) -> str:
    """Return a token as OpenAI's text completions show it. Parts of a character show as bytes, so that different tokens stay different."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
