"""From the core's deltas to OpenAI's `chat.completion` and `chat.completion.chunk`."""

from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.answer import Answer
from llava_gateway.chat import Delta, FinishReason, TokenLogprob, Usage
from llava_gateway.doors.openai.render import ChunkFrame, JsonList, head, quoted, whole
from llava_gateway.doors.openai.sampling import StreamOptions
from llava_gateway.web.reply import Parts


async def completion(answer: Answer, model: str, *, logprobs: bool) -> Parts:
    """A `chat.completion` in JSON, in parts."""
    choices: dict[int, _Choice] = {}
    await answer.collect(lambda delta: choices.setdefault(delta.index, _Choice()).add(delta))
    ordered = [choices[index].render(index, logprobs=logprobs) for index in sorted(choices)]
    return whole(head("chatcmpl", "chat.completion", model), ordered, answer.usage)


class _Choice:
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
