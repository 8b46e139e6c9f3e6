"""The endpoint `/v1/decisions`: typed questions about one input, answered with the model's own probabilities."""

import asyncio

from llava_gateway.api.openai.decision_answers import render_answer, render_usage, shares
from llava_gateway.api.openai.decision_questions import pose_all, to_chats
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import EngineFailed
from llava_gateway.http.response import ResponseWriter
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import PreparedMedia, PreparedRequest
from llava_gateway.types import TokenLogprob, Usage

PART_OF_SLOTS = 4
"""One request has at most the fourth part of `max_running` slots at the same time, so that it does not keep other requests waiting."""


async def decide(gateway: Gateway, request: DecisionRequest, response: ResponseWriter) -> None:
    """Answer a request. An error of one question ends the others. Raises GatewayError."""
    tokens = gateway.answer_tokens(request.model)
    posed = await asyncio.to_thread(pose_all, request.questions, tokens)  # some tokenizers take a second for thousands of options
    numbers, chats = zip(*to_chats(request, posed), strict=True)
    prepared = await gateway.prepare(*chats)
    media = await gateway.load_media(*prepared)
    usage = Usage()

    async def read(request: tuple[PreparedRequest, PreparedMedia]) -> dict[int, float]:
        return await _read_logprobs(gateway, *request, usage)

    limit = max(gateway.settings.max_running // PART_OF_SLOTS, 1)
    logprobs: list[dict[int, float]] = [{} for _ in posed]
    for number, read_logprobs in zip(numbers, await gather_limited(read, zip(prepared, media, strict=True), limit), strict=True):
        logprobs[number] |= read_logprobs
    answers = [
        render_answer(question, shares([[found[token] for token in answer] for answer in each.answers]))
        for question, each, found in zip(request.questions, posed, logprobs, strict=True)
    ]
    await response.json(200, {"answers": answers, "model": request.model, "usage": render_usage(usage)})


async def _read_logprobs(gateway: Gateway, prepared: PreparedRequest, media: PreparedMedia, usage: Usage) -> dict[int, float]:
    """Return the log probabilities of the tokens that the request names, by token id, and add its tokens to `usage`."""
    tokens: list[TokenLogprob] = []
    async with gateway.open_prepared(prepared, media) as deltas:
        await deltas.collect(lambda delta: tokens.extend(delta.logprobs))
        usage.add(deltas.usage)
    if not tokens:
        raise EngineFailed("The engine returned no probabilities.")
    return dict(zip(tokens[0].top_ids, (logprob for _, logprob in tokens[0].top), strict=True))
