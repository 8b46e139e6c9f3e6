"""How often the demo model tells the truth, through the real engine: `python -m llava_gateway.demo.evaluate` (or `make measure`).

Fresh pictures, never seen in training: noisy, dim, off centre, of many sizes and shapes, as PNG and JPEG. An answer counts if it is
exactly right. Exit status 1 if it falls short of the bounds below.
"""

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME
from llava_gateway.demo.images import PLACES, Grid, data_uri, describe, draw_noisy, encode, random_grid
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.types import ChatRequest, ImageUrl, Message, SamplingParams, Text

SEED = 20_000_003  # far from the training's seeds
AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    kind: str
    grids: tuple[Grid, ...]
    text: str
    truth: str


def questions(rng: random.Random) -> Iterator[Question]:
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


BOUNDS = {"describe one": 0.98, "ask one place": 0.98, "describe two": 0.95, "describe four": 0.9}


def ask(question: Question, rng: random.Random) -> ChatRequest:
    uris = [data_uri(encode(draw_noisy(grid, rng), rng.choice(("PNG", "JPEG")))) for grid in question.grids]
    content: tuple[Text | ImageUrl, ...] = (*(ImageUrl(uri, "image") for uri in uris), Text(question.text))
    return ChatRequest(model=MODEL_NAME, messages=(Message("user", content),), sampling=SamplingParams(max_tokens=200, temperature=0))


async def measure() -> bool:
    settings = Settings()
    engine = Supervisor(lambda: VllmEngine(str(CHECKPOINT), ENGINE_FLAGS), settings.engine_timeout)
    gateway = Gateway(settings, [ServedModel(MODEL_NAME, engine)])
    await gateway.start()
    places = asyncio.Semaphore(AT_ONCE)

    async def is_true(question: Question, seed: int) -> tuple[str, bool]:
        async with places, gateway.open(ask(question, random.Random(seed))) as answer:
            said = "".join([delta.text async for delta in answer])
        if said != question.truth:
            print(f"{question.kind}: {question.truth!r} was answered {said!r}", flush=True)
        return question.kind, said == question.truth

    start = time.monotonic()
    results = await asyncio.gather(*(is_true(question, SEED + number) for number, question in enumerate(questions(random.Random(SEED)), 1)))
    good = True
    for kind, bound in BOUNDS.items():
        right = [truth for name, truth in results if name == kind]
        share = sum(right) / len(right)
        good &= share >= bound
        print(f"{kind:14} {sum(right):4} of {len(right):4} exact: {share:.1%} (at least {bound:.0%})")
    print(f"{time.monotonic() - start:.0f} s")
    await gateway.stop()
    return good


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
