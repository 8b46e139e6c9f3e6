"""From the core's deltas to OpenAI's `chat.completion` and `chat.completion.chunk`."""

from typing import Any

import orjson

from llava_gateway.answer import Answer
from llava_gateway.chat import Delta, TokenLogprob, Usage
from llava_gateway.doors.openai.render import ChunkFrame, head, render_usage
from llava_gateway.doors.openai.sampling import StreamOptions


async def completion(answer: Answer, model: str, *, logprobs: bool) -> dict[str, Any]:
    """A `chat.completion`."""
    choices: dict[int, dict[str, Any]] = {}
    async for delta in answer:
        choices[delta.index] = {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": render_logprobs(delta.logprobs) if logprobs else None,
            "finish_reason": delta.finish_reason,
        }
    ordered = [choices[index] for index in sorted(choices)]
    return head("chatcmpl", "chat.completion", model) | {"choices": ordered, "usage": render_usage(answer.usage)}


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
            frames += self._chunk(delta.index, b"{}", finish_reason=b'"' + delta.finish_reason.encode() + b'"')
        return frames

    def end(self) -> bytes:
        return self._frame.end()

    def _chunk(self, index: int, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        return self._frame.chunk(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason))


def render_logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """`content` has one entry for each token. A token that is not whole characters shows U+FFFD; its `bytes` are exact."""
    content = [
        _logprob(entry.token, entry.logprob) | {"top_logprobs": [_logprob(token, logprob) for token, logprob in entry.top]}
        for entry in logprobs
    ]
    return {"content": content, "refusal": None}


def _logprob(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
