"""Requests of the benchmark, the measurement of their cost, and the check of their answers."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from bench.peers import Peer
from jinja2 import Environment
from tokenizers import Tokenizer

from llava_gateway.demo import CHECKPOINT, MODEL_NAME
from llava_gateway.demo.images import Grid, describe
from llava_gateway.loadtest.client import LoadTarget, Outcome

CHAT = "/chat/completions"
TOKENS_PER_IMAGE = 576
"""Tokens of an image in the demo model's prompt."""


@dataclass(frozen=True)
class Row:
    """The figures of one kind of request at one server."""

    name: str
    figures: dict[str, float]
    """By unit."""
    fault: str = ""
    """The difference between the server's answers and the true ones. Empty: the answers are true."""


@dataclass(frozen=True)
class Chat:
    """A chat request."""

    body: bytes
    prompt_tokens: int
    """The number of tokens of the true prompt."""


@dataclass(frozen=True)
class Sample:
    """The cost of requests that were sent at the same time."""

    ms: float
    """Time to the first text of a single request, or to the end of several."""
    cpu_ms: float
    """CPU time of the front end."""
    fault: str


def chat(peer: Peer, messages: list[dict[str, Any]], max_tokens: int = 8) -> Chat:
    """Return a streamed chat request for a server."""
    fields = {"temperature": 0, "max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True}}
    body = {"model": MODEL_NAME, "messages": messages, **fields, **peer.fields}
    return Chat(json.dumps(body).encode(), prompt_tokens(messages))


def user(text: str, *urls: str) -> dict[str, Any]:
    """Return a user message: images, then text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def about(peer: Peer, *urls: str) -> Chat:
    """Return a request to describe images."""
    return chat(peer, [user(question(len(urls)), *urls)])


def question(images: int) -> str:
    """Return the question that the demo model knows for this number of images."""
    return "Describe this image." if images == 1 else "Describe these images."


def prompt_tokens(messages: Iterable[dict[str, Any]], checkpoint: Path = CHECKPOINT) -> int:
    """Return the number of tokens that LLaVA's prompt has for these messages, with `<s>` and all tokens of the images.

    `checkpoint`: the directory of the model.
    """
    shown = []
    images = 0
    for message in messages:
        parts = message["content"]
        if not isinstance(parts, str):
            images += sum(part["type"] == "image_url" for part in parts)
            parts = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        shown.append({"role": message["role"], "content": parts})
    template, tokenizer = _model(checkpoint)
    prompt = template.render(messages=shown, add_generation_prompt=True, eos_token="</s>")
    return len(tokenizer.encode(prompt).ids) + images * (TOKENS_PER_IMAGE - 1)


def measure(peer: Peer, chats: Sequence[Chat], path: str = CHAT) -> Sample:
    """Send requests at the same time. Return their cost."""
    before = peer.cpu()
    outcomes, seconds = asyncio.run(answer_all(peer, [each.body for each in chats], path))
    cpu = peer.cpu() - before
    ms = (outcomes[0].first or outcomes[0].last if len(chats) == 1 else seconds) * 1000
    return Sample(ms, cpu * 1000, (wrong_count(chats, outcomes) or empty_answer(outcomes)) if path == CHAT else "")


def wrong_count(chats: Sequence[Chat], outcomes: Sequence[Outcome]) -> str:
    """Return a sentence about the first answer whose prompt had another number of tokens than the request, or nothing."""
    for each, outcome in zip(chats, outcomes, strict=True):
        if outcome.prompt_tokens != each.prompt_tokens:
            return f"the prompt has {outcome.prompt_tokens} tokens instead of {each.prompt_tokens}"
    return ""


def empty_answer(outcomes: Sequence[Outcome]) -> str:
    """Return a sentence if an answer has no text, or nothing. The text is empty if the engine computes NaN."""
    return "an answer has no text" if any(outcome.first is None for outcome in outcomes) else ""


async def answer_all(peer: Peer, bodies: Sequence[bytes], path: str = CHAT) -> tuple[list[Outcome], float]:
    """Send requests at the same time, each over its own connection. Return their outcomes and the seconds until the last answer."""
    target = LoadTarget(f"{peer.url}/v1")
    connections = [await target.connect() for _ in bodies]
    requests = [target.head(path, len(body)) + body for body in bodies]
    start = time.perf_counter()
    outcomes = await asyncio.gather(*(connection.ask(each) for connection, each in zip(connections, requests, strict=True)))
    seconds = time.perf_counter() - start
    for connection, outcome in zip(connections, outcomes, strict=True):
        connection.close()
        assert not outcome.error, outcome.error
    return outcomes, seconds


def row(name: str, samples: Sequence[Sample], *faults: str) -> Row:
    """Return the medians of samples. `faults`: further faults of this row."""
    fault = next(filter(None, [*(sample.fault for sample in samples), *faults]), "")
    figures = {
        "ms": statistics.median(sample.ms for sample in samples),
        "front end CPU ms": statistics.median(sample.cpu_ms for sample in samples),
    }
    return Row(name, figures, fault)


def misdescribed(peer: Peer, grids: Sequence[Grid], urls: Sequence[str]) -> str:
    """Ask about pictures of grids. Return a sentence about the answer if it is wrong, or nothing."""
    answer = say(peer, [user(question(len(grids)), *urls)])
    return "" if answer == describe(grids) else f"a picture of {describe(grids)!r} is described as {answer[:120]!r}"


def say(peer: Peer, messages: list[dict[str, Any]]) -> str:
    """Return the text of a whole answer without the spaces around it. Raises httpx.HTTPError."""
    body = {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 200, **peer.fields}
    response = httpx.post(f"{peer.url}/v1{CHAT}", json=body, timeout=60).raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"]).strip()


@cache
def _model(checkpoint: Path) -> tuple[Any, Tokenizer]:
    environment = Environment(autoescape=False)
    template = environment.from_string((checkpoint / "chat_template.jinja").read_text())
    return template, Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
