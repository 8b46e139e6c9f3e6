"""The prompt's part of an answer: its log probabilities, and the prompt that a text completion repeats.

A long prompt has tens of thousands of log probabilities. They are rendered in pieces, and other requests are served between two pieces.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llava_gateway.api.openai.streaming import JsonList, RenderOptions, render_token_ids
from llava_gateway.http.response import Parts
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import PromptLogprobs, TokenLogprob

POSITIONS = 64
"""Positions of the prompt in one piece."""


async def render_prompt_fields(deltas: DeltaStream, options: RenderOptions) -> Parts:
    """Return vLLM's fields `prompt_token_ids` and `prompt_logprobs`, each after a comma, if the request asks for them."""
    parts: list[bytes | bytearray] = []
    if options.token_ids:
        parts.append(render_token_ids("prompt_token_ids", deltas.prompt_token_ids))
    if options.prompt_logprobs is not None and deltas.prompt_logprobs:
        tokenizer = deltas.model.tokenizer
        parts += [b',"prompt_logprobs":', await _render_logprobs(deltas.prompt_logprobs, options.prompt_logprobs, tokenizer)]
    return parts


async def _render_logprobs(logprobs: PromptLogprobs, top: int, tokenizer: Tokenizer) -> bytearray:
    """Return an object by token id for each position of the prompt, and null for the first, as JSON.

    `top`: the number of likeliest tokens beside the prompt's own token.
    """
    rendered = JsonList()
    for start in range(0, len(logprobs), POSITIONS):
        positions = range(start, min(start + POSITIONS, len(logprobs)))
        rendered.extend([_render_position(logprobs.entries(position, top), tokenizer) for position in positions])
        await asyncio.sleep(0)
    return rendered.close()


def _render_position(entries: list[tuple[int, float, int]], tokenizer: Tokenizer) -> dict[str, dict[str, Any]] | None:
    return {
        str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_bytes(token_id).decode(errors="replace")}
        for token_id, logprob, rank in entries
    } or None


async def prompt_tokens(
    token_ids: Sequence[int], logprobs: PromptLogprobs, top: int, tokenizer: Tokenizer
) -> AsyncIterator[list[TokenLogprob]]:
    """Yield the tokens of a prompt with their log probabilities, piece by piece. The first token's has no meaning."""
    for start in range(0, len(logprobs), POSITIONS):
        piece = []
        for position in range(start, min(start + POSITIONS, len(logprobs))):
            entries = logprobs.entries(position, top) or [(token_ids[position], 0.0, 1)]
            (token_id, logprob, _), *others = entries
            others_as_bytes = tuple((tokenizer.token_bytes(other), value) for other, value, _ in others)
            piece.append(
                TokenLogprob(tokenizer.token_bytes(token_id), logprob, others_as_bytes, token_id, tuple(other for other, _, _ in others))
            )
        yield piece
        await asyncio.sleep(0)


def characters(token_ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Return the number of characters in the texts of these tokens."""
    return len(b"".join(map(tokenizer.token_bytes, token_ids)).decode(errors="replace"))
