"""The demo model tells the truth on this device: the truth tests of `make test`, and a hundred questions about noisy images."""

import random
from concurrent.futures import ThreadPoolExecutor

from gpu.conftest import Note
from helpers.requests import body, image_part
from integration.images.test_truth import *  # noqa: F403
from openai import OpenAI

from llava_gateway.demo.evaluate import BOUNDS, SEED, Question, chat_request, questions
from llava_gateway.types import ImageUrl, Text

SHARE = 25
"""Of so many questions of `make measure` one is asked."""


def messages(question: Question, seed: int) -> list[dict[str, object]]:
    """Return the question with noisy images, as a client sends it."""
    asked = []
    for message in chat_request(question, random.Random(seed)).messages:
        parts = [image_part(str(part.url)) if isinstance(part, ImageUrl) else part for part in message.content]
        content = [{"type": "text", "text": part.text} if isinstance(part, Text) else part for part in parts]
        asked.append({"role": message.role, "content": content})
    return asked


def test_hundred_questions_are_answered_as_well_as_on_a_cpu(client: OpenAI, note: Note) -> None:
    asked = list(enumerate(questions(random.Random(SEED)), 1))[::SHARE]

    def is_right(number: int, question: Question) -> bool:
        completion = client.chat.completions.create(**body(messages=messages(question, SEED + number)))
        return completion.choices[0].message.content == question.correct

    with ThreadPoolExecutor(16) as pool:
        right = list(pool.map(lambda each: is_right(*each), asked))
    note(f"truth: {sum(right)} of {len(right)} answers of the demo model are right")
    assert sum(right) / len(right) >= min(BOUNDS.values())
