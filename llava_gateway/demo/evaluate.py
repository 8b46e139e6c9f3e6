"""The share of the demo model's answers that are right, through the real engine: `python -m llava_gateway.demo.evaluate`.

`make measure` runs it. The images are new to the model: noisy, dim, with a shifted centre, of many sizes and shapes, as PNG and JPEG. An
answer counts if it equals the correct answer exactly. The exit status is 1 if a share is below its bound in BOUNDS.
"""

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME
from llava_gateway.demo.conversations import choice, predicate
from llava_gateway.demo.images import PLACES, Grid, data_uri, describe, draw_noisy, encode, random_grid
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.types import ChatRequest, ImageUrl, Message, SamplingParams, Text

SEED = 20_000_003  # differs from the seeds of the training
CONCURRENCY = 16


@dataclass(frozen=True)
class Question:
    """A question about images, with its correct answer."""

    kind: str
    grids: tuple[Grid, ...]
    text: str
    correct: str
    earlier: tuple[str, str] | None = None
    """An earlier question about the images and its answer."""


def questions(rng: random.Random) -> Iterator[Question]:
    """Yield the questions of all kinds, about random images."""
    for _ in range(500):
        grid = random_grid(rng)
        yield Question("describe one", (grid,), "Describe this image.", describe([grid]))
    for _ in range(500):
        grid, place = random_grid(rng), rng.randrange(len(PLACES))
        yield Question("ask one place", (grid,), f"What color is the {PLACES[place]}?", f"{grid[place].capitalize()}.")
    for _ in range(200):
        grids: tuple[Grid, ...] = (random_grid(rng), random_grid(rng))
        yield Question("describe two", grids, "Describe these images.", describe(grids))
    for _ in range(100):
        grids = tuple(random_grid(rng) for _ in range(4))
        yield Question("describe four", grids, "Describe these images.", describe(grids))
    for _ in range(500):
        grid = random_grid(rng)
        yield Question("predicate", (grid,), *predicate(grid, rng))
    for _ in range(500):
        grid = random_grid(rng)
        yield Question("choice", (grid,), *choice(grid, rng))
    for _ in range(200):
        grid, place = random_grid(rng), rng.randrange(len(PLACES))
        text, correct = f"What color is the {PLACES[place]}?", f"{grid[place].capitalize()}."
        yield Question("ask later", (grid,), text, correct, earlier=("Describe this image.", describe([grid])))


BOUNDS = {
    "describe one": 0.98,
    "ask one place": 0.98,
    "describe two": 0.95,
    "describe four": 0.9,
    "predicate": 0.98,
    "choice": 0.98,
    "ask later": 0.98,
}
"""The least share of correct answers, by kind of question."""


def chat_request(question: Question, rng: random.Random) -> ChatRequest:
    """Return the question as a request with noisy images."""
    uris = [data_uri(encode(draw_noisy(grid, rng), rng.choice(("PNG", "JPEG")))) for grid in question.grids]
    images = tuple(ImageUrl(uri, "image") for uri in uris)
    messages: tuple[Message, ...] = (Message("user", (*images, Text(question.text))),)
    if question.earlier:
        asked, answer = question.earlier
        messages = (
            Message("user", (*images, Text(asked))),
            Message("assistant", (Text(answer),)),
            Message("user", (Text(question.text),)),
        )
    return ChatRequest(model=MODEL_NAME, messages=messages, sampling=SamplingParams(max_tokens=200, temperature=0))


async def measure() -> bool:
    """Ask all questions and print the shares of correct answers. Return whether all shares reach their bounds."""
    settings = Settings()
    engine = Supervisor(lambda: VllmEngine(str(CHECKPOINT), ENGINE_FLAGS), settings.engine_timeout)
    gateway = Gateway(settings, [ServedModel(MODEL_NAME, engine)])
    await gateway.start()
    slots = asyncio.Semaphore(CONCURRENCY)

    async def check(question: Question, seed: int) -> tuple[str, bool]:
        async with slots, gateway.open(chat_request(question, random.Random(seed))) as deltas:
            answer = "".join([delta.text async for delta in deltas])
        if answer != question.correct:
            print(f"{question.kind}: the answer is {answer!r} instead of {question.correct!r}", flush=True)
        return question.kind, answer == question.correct

    start = time.monotonic()
    results = await asyncio.gather(*(check(question, SEED + number) for number, question in enumerate(questions(random.Random(SEED)), 1)))
    good_enough = True
    for kind, bound in BOUNDS.items():
        correct = [is_correct for name, is_correct in results if name == kind]
        share = sum(correct) / len(correct)
        good_enough &= share >= bound
        print(f"{kind:14} {sum(correct):4} of {len(correct):4} exact: {share:.1%} (at least {bound:.0%})")
    print(f"{time.monotonic() - start:.0f} s")
    await gateway.stop()
    return good_enough


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
