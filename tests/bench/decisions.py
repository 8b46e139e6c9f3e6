"""What many yes-or-no questions about one new picture cost. The gateway gets one request to `/v1/decisions`. A server without that endpoint
gets one chat for each question, all at once, with an answer of one token."""

import asyncio
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bench.images import SIZES, Row, answer_all, images
from bench.peers import Peer

from llava_gateway.demo import MODEL_NAME

COUNTS = (1, 100)
SIZE = "2 MP"
DECISIONS, CHAT = "/decisions", "/chat/completions"
ENDING = "\nIs this statement true? Please answer yes or no."


def rows(peer: Peer, samples: int) -> Iterator[tuple[str, Row]]:
    """Yield each row with its name."""
    photos = images(SIZES[SIZE])
    make, path = (decision, DECISIONS) if peer.name == "gateway" else (chats, CHAT)
    for count in COUNTS:
        statements = [f"The color of place {number} is red." for number in range(count)]
        asyncio.run(answer_all(peer, make(next(photos), statements), path))
        figures = [_measured(peer, make(photo, statements), path) for photo in itertools.islice(photos, samples)]
        name = f"{count} question{'s' * (count > 1)} about a new {SIZE} JPEG"
        yield name, {"ms": statistics.median(each[0] for each in figures), "front end CPU ms": statistics.mean(each[1] for each in figures)}


def decision(photo: str, statements: Sequence[str]) -> list[bytes]:
    """Return the body of one request with all statements as predicates."""
    given = [{"role": "user", "content": [{"type": "input_image", "image_url": photo}]}]
    questions = [{"type": "predicate", "instructions": statement} for statement in statements]
    return [json.dumps({"model": MODEL_NAME, "input": given, "questions": questions}).encode()]


def chats(photo: str, statements: Sequence[str]) -> list[bytes]:
    """Return the bodies of one chat for each statement, which ask for the log probabilities of one token."""
    fields: dict[str, Any] = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    picture = {"type": "image_url", "image_url": {"url": photo}}
    return [
        json.dumps(fields | {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": statement + ENDING}]}]}).encode()
        for statement in statements
    ]


def _measured(peer: Peer, bodies: list[bytes], path: str) -> tuple[float, float]:
    """Return the time until all are answered, and the front end's CPU for it, both in milliseconds."""
    before = peer.cpu()
    _, seconds = asyncio.run(answer_all(peer, bodies, path))
    return seconds * 1000, (peer.cpu() - before) * 1000
