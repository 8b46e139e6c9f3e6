"""`/v1/decisions` on the real engine: probabilities that are true, one prefill of the picture, and log probabilities that stay apart."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.requests import MODEL, body, image
from helpers.server import Server
from openai import AsyncOpenAI, OpenAI

from llava_gateway.demo.images import COLORS, PLACES, Grid, random_grid

PREDICATE = {"type": "predicate", "instructions": "The top left is red."}
GRIDS = 200
SURE = 0.98
"""The share of the grids for which an answer must be right."""


def given(*grids: Grid, text: str = "") -> list[Any]:
    parts = [{"type": "input_image", "image_url": image(grid)["image_url"]["url"]} for grid in grids]
    return [{"role": "user", "content": [*parts, *([{"type": "input_text", "text": text}] if text else [])]}]


def statements(grid: Grid, rng: random.Random) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield a true and a false statement about one quarter, as questions."""
    place = rng.randrange(len(PLACES))
    for color in (grid[place], rng.choice([color for color in COLORS if color != grid[place]])):
        yield {"type": "predicate", "instructions": f"The {PLACES[place]} is {color}."}, color == grid[place]


def choices(grid: Grid, rng: random.Random) -> tuple[dict[str, Any], str]:
    """Return a question about one quarter with the eight colours to choose from, and the right answer."""
    place = rng.randrange(len(PLACES))
    question = f"What color is the {PLACES[place]}?"
    return {"type": "choice", "instructions": question, "choices": [{"value": color} for color in COLORS]}, grid[place]


def test_decisions_about_grids_are_true(server: Server) -> None:
    rng = random.Random(7)
    asked = [(grid, list(statements(grid, rng)), choices(grid, rng)) for grid in (random_grid(rng) for _ in range(GRIDS))]

    async def ask(client: AsyncOpenAI, grid: Grid, questions: Sequence[Any]) -> Any:
        return (await client.decisions.create(model=MODEL, input=given(grid), questions=questions)).answers

    async def ask_all() -> list[Any]:
        async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=5) as client:
            return await asyncio.gather(*(ask(client, grid, [*(each for each, _ in told), chosen[0]]) for grid, told, chosen in asked))

    answers = asyncio.run(ask_all())
    judged = [
        (answer.probability > 0.9) if is_true else (answer.probability < 0.1)
        for (_, told, _), found in zip(asked, answers, strict=True)
        for (_, is_true), answer in zip(told, found[:2], strict=True)
    ]
    assert sum(judged) >= SURE * len(judged)
    chosen = [found[2].choice == right for (_, _, (_, right)), found in zip(asked, answers, strict=True)]
    assert sum(chosen) >= SURE * len(chosen)


def test_100_questions_read_the_picture_once(server: Server) -> None:
    before = server.metric("vllm:prompt_tokens_total"), server.metric("vllm:prefix_cache_hits_total")
    questions: Any = [PREDICATE | {"instructions": f"Statement {number}: the top left is red."} for number in range(100)]
    client = OpenAI(base_url=server.v1, api_key="none", timeout=120)
    decision = client.decisions.create(model=MODEL, input=given(("white", "black", "white", "orange")), questions=questions)
    usage: Any = decision.usage
    assert len(decision.answers) == 100
    assert usage.output_tokens == 100
    assert usage.input_tokens_details.image_tokens == 100 * 576
    assert usage.input_tokens_details.cached_tokens >= 99 * 512  # whole blocks of the KV cache, of 128 tokens on a CPU
    assert server.metric("vllm:prompt_tokens_total") - before[0] == usage.input_tokens
    assert server.metric("vllm:prefix_cache_hits_total") - before[1] == usage.input_tokens_details.cached_tokens


def test_probability_is_the_share_of_the_models_own_log_probabilities(client: OpenAI, live_client: OpenAI) -> None:
    """A chat with the same prompt gives the log probabilities of the likeliest tokens."""
    picture = image(("red", "blue", "green", "orange"))
    question = "What color is the top left?"
    names = ["red", "green"]
    asked: Any = {"type": "choice", "instructions": question, "choices": [{"value": name} for name in names]}
    (answer,) = live_client.decisions.create(model=MODEL, input=given(("red", "blue", "green", "orange")), questions=[asked]).answers
    assert answer.type == "choice"
    prompt = f"{question}\nAnswer with one of these: red, green."
    chat = client.chat.completions.create(**body(picture, prompt, max_tokens=1, logprobs=True, top_logprobs=20))
    logprobs: Any = chat.choices[0].logprobs
    likeliest = max((top for top in logprobs.content[0].top_logprobs if top.token.strip().lower() in names), key=lambda top: top.logprob)
    assert answer.choice == likeliest.token.strip().lower()


def test_chat_keeps_its_likeliest_tokens_beside_decisions(client: OpenAI, live_client: OpenAI) -> None:
    """The engine runs both in one batch."""
    request = body("Tell me a story.", max_tokens=60, logprobs=True, top_logprobs=5, ignore_eos=True)

    def chat(_: Any = None) -> Any:
        extra = {"ignore_eos": request.pop("ignore_eos", True)}
        return client.chat.completions.create(**request, extra_body=extra).choices[0].logprobs

    alone = chat()
    with ThreadPoolExecutor(5) as pool:
        beside = pool.submit(chat)
        while not beside.done():
            questions: Any = [PREDICATE] * 8
            live_client.decisions.create(model=MODEL, input="Hello", questions=questions)
        tokens = [[each.token for each in position.top_logprobs] for position in beside.result().content]
    assert tokens == [[each.token for each in position.top_logprobs] for position in alone.content]


@pytest.mark.parametrize("prefix", ["/v1", "/v1/openai"])
def test_every_type_of_question_is_answered(server: Server, prefix: str) -> None:
    client = OpenAI(base_url=server.url + prefix, api_key="none", timeout=120)
    questions: Any = [
        PREDICATE | {"name": "red"},
        {"type": "choice", "instructions": "Is it red?", "choices": [{"value": True, "description": "mostly"}, {"value": False}]},
        {"type": "score", "instructions": "How red is it?", "levels": [{"label": "not"}, {"label": "partly"}, {"label": "fully"}]},
    ]
    predicate, choice, score = client.decisions.create(model=MODEL, input="The picture is red.", questions=questions).answers
    assert predicate.type == "predicate"
    assert 0 <= predicate.probability <= 1
    assert choice.type == "choice"
    assert isinstance(choice.choice, bool)
    assert score.type == "score"
    assert 0 <= score.score <= 2
