"""The cost of many yes-or-no questions about one new image.

The gateway gets one request to `/v1/decisions`. The other servers lack this endpoint, so they get one chat for each question, all at the
same time, with an answer of one token.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from bench.chat_requests import CHAT, Chat, Row, measure, prompt_tokens, row, user
from bench.images import GRIDS
from bench.peers import GATEWAY, Peer
from bench.pictures import MEDIUM, grid_picture, new_pictures

from llava_gateway.demo import MODEL_NAME
from llava_gateway.demo.conversations import PREDICATE_END
from llava_gateway.demo.images import PLACES

COUNTS = (1, 100)
DECISIONS = "/decisions"


def rows(peer: Peer, samples: int) -> Iterator[Row]:
    """Yield a row for each number of questions."""
    pictures = new_pictures(MEDIUM)
    make, path = (_decision, DECISIONS) if peer.name == GATEWAY else (_chats, CHAT)
    fault = misjudged(peer)
    for count in COUNTS:
        statements = [f"The color of place {number} is red." for number in range(count)]
        bodies = [make(peer, next(pictures), statements) for _ in range(max(samples // 2, 2))]
        samples_of_row = [measure(peer, each, path) for each in bodies]
        yield row(f"{count} question{'s' * (count > 1)} about a new {MEDIUM.name}", samples_of_row, fault)


def misjudged(peer: Peer) -> str:
    """Let a server judge true and false statements about the quarters of a grid.

    Return a sentence about the first wrong judgement, or nothing.
    """
    picture, grid = grid_picture(MEDIUM, GRIDS[0]), GRIDS[0]
    other = dict(zip(PLACES, (*grid[1:], grid[0]), strict=True))
    statements = {f"The {place} is {color}.": True for place, color in zip(PLACES, grid, strict=True)}
    statements |= {f"The {place} is {color}.": False for place, color in other.items()}
    judged = _judged_true(peer, picture, list(statements))
    wrong = next((statement for statement, true in zip(statements, judged, strict=True) if statements[statement] != true), "")
    return f"{wrong!r} about {' '.join(grid)} is judged wrongly" if wrong else ""


def _judged_true(peer: Peer, picture: str, statements: Sequence[str]) -> list[bool]:
    """Return the server's judgements. Raises httpx.HTTPError."""
    if peer.name == GATEWAY:
        (request,) = _decision(peer, picture, statements)
        response = httpx.post(f"{peer.url}/v1{DECISIONS}", content=request.body, timeout=60).raise_for_status()
        return [answer["probability"] > 0.5 for answer in response.json()["answers"]]
    judged = []
    for request in _chats(peer, picture, statements):
        response = httpx.post(f"{peer.url}/v1{CHAT}", content=request.body, headers={"content-type": "application/json"}, timeout=60)
        judged.append(response.raise_for_status().json()["choices"][0]["message"]["content"].strip() == "yes")
    return judged


def _decision(peer: Peer, picture: str, statements: Sequence[str]) -> list[Chat]:
    """Return one request with all statements as predicates."""
    given = [{"role": "user", "content": [{"type": "input_image", "image_url": picture}]}]
    questions = [{"type": "predicate", "instructions": statement} for statement in statements]
    return [Chat(json.dumps({"model": MODEL_NAME, "input": given, "questions": questions}).encode(), 0)]


def _chats(peer: Peer, picture: str, statements: Sequence[str]) -> list[Chat]:
    """Return one chat for each statement. It asks for the log probabilities of one token."""
    fields: dict[str, Any] = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20, **peer.fields}
    found = []
    for statement in statements:
        messages = [user(statement + PREDICATE_END, picture)]
        found.append(Chat(json.dumps(fields | {"messages": messages}).encode(), prompt_tokens(messages)))
    return found
