"""No request and no image server blocks the event loop, which serves all other requests."""

import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers.attacks import CONNECTIONS, KINDS, Attacks
from helpers.hostile_origin import hostile_origin
from helpers.requests import MODEL, body, image
from helpers.server import Server

from llava_gateway.demo.images import describe

GRID = ("red", "blue", "green", "orange")
LIMIT = "0.05"
"""Seconds, and a bucket of the metric."""
LOGPROBS = {"n": 16, "temperature": 1, "max_tokens": 500, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
PROMPTS = {"model": MODEL, "prompt": ["red blue"] * 128, "temperature": 1, "max_tokens": 10, "ignore_eos": True}
HEAVY: dict[str, tuple[str, dict[str, Any]]] = {
    "log probabilities": ("/v1/chat/completions", body("Hello") | LOGPROBS),
    "log probabilities in a stream": ("/v1/chat/completions", body("Hello") | LOGPROBS | {"stream": True}),
    "prompts of many choices": ("/v1/completions", PROMPTS | {"n": 16}),
    "prompts with log probabilities": ("/v1/completions", PROMPTS | {"n": 4, "logprobs": 5}),
    "a long prompt for many choices": ("/v1/completions", PROMPTS | {"prompt": [list(range(200, 600)) * 10], "n": 16}),
    "long prompts": ("/v1/completions", PROMPTS | {"prompt": [list(range(200, 600)) * 5] * 40, "max_tokens": 1}),
    "a long text": ("/tokenize", {"prompt": "\N{LLAMA}" * 40_000}),
    "a history": ("/api/v1/chat", {"user_input": "Hi", "history": {"internal": [["Hi", "Yo"]], "visible": [["x " * 10**6, "Yo"]]}}),
}
"""Requests that are valid, and their paths."""


@pytest.fixture(scope="module")
def attacks(server: Server) -> Iterator[Attacks]:
    with hostile_origin() as url:
        yield Attacks(server.url, url)


def stalls(server: Server) -> float:
    """How often a timer of the gateway's event loop was late, by that loop's own work."""
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("llava_event_loop_stall_seconds_"))
    return float(values["llava_event_loop_stall_seconds_count"]) - float(values[f'llava_event_loop_stall_seconds_bucket{{le="{LIMIT}"}}'])


@pytest.mark.parametrize("kind", KINDS)
def test_attack_does_not_block_the_event_loop(server: Server, attacks: Attacks, kind: str) -> None:
    before = stalls(server)
    for seed in range(1 if kind in CONNECTIONS else 3):
        attacks.run(kind, random.Random(seed))
    assert stalls(server) == before
    answer = httpx.post(f"{server.v1}/chat/completions", json=body(image(GRID), "Describe this image."), timeout=60)
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_request_does_not_block_the_event_loop(server: Server, name: str) -> None:
    path, request = HEAVY[name]
    before = stalls(server)
    answer = httpx.post(f"{server.url}{path}", json=request, timeout=120)
    assert answer.status_code == 200, answer.text[:200]
    assert stalls(server) == before


def test_answer_memory_is_counted_until_the_client_has_read_it(server: Server) -> None:
    """Its engine has no more to do with it then."""

    def held() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("llava_answer_bytes "))

    path, request = HEAVY["log probabilities"]
    with httpx.stream("POST", f"{server.url}{path}", json=request, timeout=120) as answer:
        assert held() > int(answer.headers["content-length"]) // 2
        answer.read()
    deadline = time.monotonic() + 30
    while held() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert held() == 0
