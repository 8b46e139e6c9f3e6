"""The answers of `/v1/decisions`, in the shapes of OpenAI's `Decision`."""

import math
from collections.abc import Sequence
from typing import Any

from llava_gateway.api.openai.decision_request import AnyQuestion, ChoiceQuestion, Predicate
from llava_gateway.types import Usage


def shares(logprobs: Sequence[Sequence[float]]) -> list[float]:
    """Return the probability of each answer, if one of them is given.

    `logprobs`: for each answer the log probabilities of the tokens that stand for it.
    """
    highest = max(logprob for answer in logprobs for logprob in answer)
    weights = [sum(math.exp(logprob - highest) for logprob in answer) for answer in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]


def confidence(probabilities: Sequence[float]) -> float:
    """Return how concentrated a distribution is: 1 for one certain answer, 0 for equal probabilities. It is 1 minus the entropy's share of
    the greatest possible entropy."""
    entropy = -sum(probability * math.log(probability) for probability in probabilities if probability > 0)
    return min(max(1 - entropy / math.log(len(probabilities)), 0.0), 1.0)


def render_answer(question: AnyQuestion, probabilities: Sequence[float]) -> dict[str, Any]:
    """Return the answer to a question. `probabilities`: of its choices or levels in order; for a predicate those of yes and of no."""
    if isinstance(question, Predicate):
        return {"type": "predicate", "name": question.name, "probability": probabilities[0]}
    fields = {"type": question.type, "name": question.name}
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        return {
            **fields,
            "choice": values[probabilities.index(max(probabilities))],
            "confidence": confidence(probabilities),
            "probabilities": [
                {"value": value, "probability": probability} for value, probability in zip(values, probabilities, strict=True)
            ],
        }
    return {
        **fields,
        "score": sum(value * probability for value, probability in enumerate(probabilities)),
        "confidence": confidence(probabilities),
        "probabilities": [
            {"label": level.label, "probability": probability, "value": value}
            for value, (level, probability) in enumerate(zip(question.levels, probabilities, strict=True))
        ],
    }


def render_usage(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's `Usage` of a decision: the sums over the prompts of all questions. Image tokens are among the input's tokens."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.prompt_tokens - usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "video_tokens": usage.video_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
