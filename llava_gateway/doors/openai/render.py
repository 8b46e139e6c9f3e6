"""From the core's deltas, usage and errors to OpenAI's objects and stream chunks."""

import time
import uuid
from typing import Any

import orjson

from llava_gateway.chat import Delta, Usage
from llava_gateway.errors import GatewayError
from llava_gateway.gateway import Answer

DONE = b"data: [DONE]\n\n"


async def completion(answer: Answer, model: str) -> dict[str, Any]:
    """A `chat.completion`."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    async for delta in answer:
        texts[delta.index] = texts.get(delta.index, "") + delta.text
        reasons[delta.index] = delta.finish_reason
    return {
        "id": _new_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": texts[index], "refusal": None},
                "logprobs": None,
                "finish_reason": reasons[index],
            }
            for index in sorted(texts)
        ],
        "usage": render_usage(answer.usage),
    }


class ChunkRenderer:
    """Deltas to framed chunks. What does not change from chunk to chunk is rendered once: this runs for every token of every stream."""

    def __init__(self, model: str, include_usage: bool) -> None:
        head = orjson.dumps({"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model})
        self._head = b"data: " + head[:-1]
        self._tail = (b',"usage":null' if include_usage else b"") + b"}\n\n"
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def push(self, delta: Delta) -> bytes:
        """The frames that a delta makes: none, while it holds no whole character."""
        frames = b""
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            frames = self._chunk(delta.index, b'{"role":"assistant","content":""}')
        if delta.text:
            frames += self._chunk(delta.index, b'{"content":' + orjson.dumps(delta.text) + b"}")
        if delta.finish_reason is not None:
            frames += self._chunk(delta.index, b"{}", b'"' + delta.finish_reason.encode() + b'"')
        return frames

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return b""
        return self._head + b',"choices":[],"usage":' + orjson.dumps(render_usage(usage)) + b"}\n\n"

    def _chunk(self, index: int, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (
            self._head, index, delta, finish_reason, self._tail,
        )  # fmt: skip


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


def render_error(error: GatewayError) -> bytes:
    """OpenAI's `ErrorResponse`."""
    return orjson.dumps({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def error_headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", str(error.retry_after).encode()),) if error.retry_after is not None else ()


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
