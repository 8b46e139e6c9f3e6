"""From the core's deltas to OpenAI's `text_completion`, whole or in chunks."""

import codecs
from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.answer import Answer
from llava_gateway.chat import Delta, FinishReason, TokenLogprob, Usage
from llava_gateway.doors.openai.render import ChunkFrame, JsonList, head, quoted, whole
from llava_gateway.doors.openai.sampling import StreamOptions
from llava_gateway.web.reply import Parts


async def text_choices(answer: Answer, *, logprobs: bool) -> list[Parts]:
    """The choices of one prompt, in order: what is within their JSON's braces, in parts, but for the index."""
    choices: dict[int, _Choice] = {}
    await answer.collect(lambda delta: choices.setdefault(delta.index, _Choice()).add(delta))
    return [choices[index].render(logprobs=logprobs) for index in sorted(choices)]


def text_completion(choices: list[Parts], usage: Usage, model: str) -> Parts:
    """A `text_completion` in JSON, in parts, of all prompts' choices."""
    numbered = ([b'{"index":%d,' % index, *choice, b"}"] for index, choice in enumerate(choices))
    return whole(head("cmpl", "text_completion", model), numbered, usage)


class TextChunkRenderer:
    """Deltas to framed chunks."""

    def __init__(self, model: str, usage: Usage, options: StreamOptions | None) -> None:
        self._frame = ChunkFrame(head("cmpl", "text_completion", model), usage, options)
        self._logprobs: dict[int, _Logprobs] = {}

    def push(self, delta: Delta) -> bytes:
        """The frame that a delta makes: none, while it holds no whole character."""
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = orjson.dumps(self._logprobs.setdefault(delta.index, _Logprobs()).render(delta.logprobs))
        reason, text = quoted(delta.finish_reason), orjson.dumps(delta.text)
        return self._frame.chunk(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (delta.index, text, logprobs, reason))

    def end(self) -> bytes:
        return self._frame.end()


class _Choice:
    """A choice that becomes whole delta by delta."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._rendered = _Logprobs()
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


class _Logprobs:
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
            "tokens": [_token(entry.token) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{_token(token): logprob for token, logprob in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }


def _token(token: bytes) -> str:
    """A token as OpenAI's plain completions show it: half a character as its bytes, so that two of them stay two."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
