"""Requests to LLaVA's worker API, and checks of its responses."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
from helpers.errors import LEAKS
from helpers.requests import MODEL
from helpers.server import Server

from llava_gateway.demo.images import Grid, draw, encode
from llava_gateway.prompts.templates import CURIOUS_HUMAN

GENERATE = "/worker_generate_stream"
GRID: Grid = ("red", "blue", "green", "orange")
HELLO = "USER: Hello ASSISTANT:"


def base64_of(grid: Grid) -> str:
    return base64.b64encode(encode(draw(grid))).decode()


def llava_v1(*turns: str | None) -> str:
    """Return a prompt in the format llava_v1, with the turns of user and assistant in alternation. None: the turn to generate."""
    prompt = CURIOUS_HUMAN + " "
    for number, turn in enumerate(turns):
        role, end = ("ASSISTANT", "</s>") if number % 2 else ("USER", " ")
        prompt += f"{role}:" if turn is None else f"{role}: {turn}{end}"
    return prompt


DESCRIBE = llava_v1("<image>\nDescribe this image.", None)


def chunks(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream without the empty ones, as `iter_lines(delimiter=b"\\0")` of requests does."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\0")
        yield from (json.loads(chunk) for chunk in whole if chunk)
    assert rest == b""


def request(prompt: str = HELLO, **fields: Any) -> dict[str, Any]:
    """Return a greedy request for an answer."""
    return {"model": MODEL, "prompt": prompt, "temperature": 0} | fields


def refused(answer: httpx.Response, status: int, error_code: int, *named: str) -> None:
    """Check that the response is one chunk with an error code and a message that contains the names."""
    assert answer.status_code == status, answer.text
    assert answer.content.endswith(b"\0")
    (chunk,) = chunks(iter([answer.content]))
    assert set(chunk) == {"text", "error_code"}
    assert chunk["error_code"] == error_code
    assert not LEAKS.search(chunk["text"])
    for name in named:
        assert name in chunk["text"]


def tokens(server: Server) -> dict[str, float]:
    """Return the numbers of text, image and completion tokens that the gateway has counted."""
    return {kind: server.metric(f'llava_tokens_total{{kind="{kind}"}}') for kind in ("text", "image", "completion")}
