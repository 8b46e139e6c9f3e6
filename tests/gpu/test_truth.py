"""The demo model tells the truth on this device: the truth tests of `make test`, and a hundred questions about noisy images."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpu.served import Note
from helpers.requests import body, image_part
from integration.images.test_truth import *  # noqa: F403
from openai import OpenAI
from openai.types.chat import ChatCompletion

from llava_gateway.demo.evaluate import BOUNDS, SEED, Question, chat_request, questions
from llava_gateway.types import ImageUrl, Text

SHARE = 25
"""Of so many questions of `make measure` one is asked."""


def messages(question: Question, seed: int) -> list[dict[str, Any]]:
    """Return the question with noisy images, as a client sends it."""
    asked = []
    for message in chat_request(question, random.Random(seed)).messages:
        parts = [image_part(str(part.url)) if isinstance(part, ImageUrl) else part for part in message.content]
        content = [{"type": "text", "text": part.text} if isinstance(part, Text) else part for part in parts]
        asked.append({"role": message.role, "content": content})
    return asked


def test_hundred_questions_are_answered_as_well_as_on_a_cpu(client: OpenAI, note: Note) -> None:
    asked = list(enumerate(questions(random.Random(SEED)), 1))[::SHARE]

    def answer(number: int, question: Question) -> str | None:
        completion: ChatCompletion = client.chat.completions.create(**body(messages=messages(question, SEED + number)))
        return completion.choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda each: answer(*each), asked))
    right = sum(given == question.correct for given, (_, question) in zip(answers, asked, strict=True))
    note(f"truth: {right} of {len(asked)} answers of the demo model are right")
    assert right / len(asked) >= min(BOUNDS.values())
