"""No request and no image server blocks the event loop, which serves all other requests."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.attacks import CONNECTIONS, KINDS, Attacks
from helpers.hostile_origin import hostile_origin
from helpers.requests import MODEL, body, image
from helpers.server import HTTP, Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe

GRID = ("red", "blue", "green", "orange")
LIMIT = "0.05"
"""The longest permitted stall in seconds. It is a bucket of the metric."""
LOGPROBS = {"n": 16, "temperature": 1, "max_tokens": 500, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
PROMPTS = {"model": MODEL, "prompt": ["red blue"] * 128, "temperature": 1, "max_tokens": 10, "ignore_eos": True}
SCORE = {"model": MODEL, "prompt": list(range(200, 600)) * 10, "max_tokens": 0, "logprobs": 20, "echo": True, "n": 2}
HEAVY: dict[str, tuple[str, dict[str, Any]]] = {
    "log probabilities": ("/v1/chat/completions", body("Hello") | LOGPROBS),
    "log probabilities in a stream": ("/v1/chat/completions", body("Hello") | LOGPROBS | {"stream": True}),
    "prompts of many choices": ("/v1/completions", PROMPTS | {"n": 16}),
    "prompts with log probabilities": ("/v1/completions", PROMPTS | {"n": 4, "logprobs": 5}),
    "a long prompt for many choices": ("/v1/completions", PROMPTS | {"prompt": [list(range(200, 600)) * 10], "n": 16}),
    "scores of a long prompt": ("/v1/completions", SCORE | {"prompt_logprobs": 20}),
    "scores of a long prompt in a stream": ("/v1/completions", SCORE | {"stream": True}),
    "long prompts": ("/v1/completions", PROMPTS | {"prompt": [list(range(200, 600)) * 5] * 40, "max_tokens": 1}),
    "a long text": ("/tokenize", {"prompt": "\N{LLAMA}" * 40_000}),
    "a history": ("/api/v1/chat", {"user_input": "Hi", "history": {"internal": [["Hi", "Yo"]], "visible": [["x " * 10**6, "Yo"]]}}),
}
"""Valid requests and their paths."""


@pytest.fixture(scope="module")
def attacks(server: Server) -> Iterator[Attacks]:
    with hostile_origin() as url:
        yield Attacks(server.url, url)


def stalls(server: Server) -> float:
    """Return how often the gateway's event loop was blocked by its own work for longer than the limit."""
    lines = HTTP.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("llava_event_loop_stall_seconds_"))
    return float(values["llava_event_loop_stall_seconds_count"]) - float(values[f'llava_event_loop_stall_seconds_bucket{{le="{LIMIT}"}}'])


def runs_without_a_stall(server: Server, work: Callable[[], None], attempts: int = 3) -> bool:
    """Return whether the event loop was not blocked in one of the attempts. On a busy machine all code needs more CPU time now and then."""
    for _ in range(attempts):
        before = stalls(server)
        work()
        if stalls(server) == before:
            return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_attack_does_not_block_the_event_loop(server: Server, attacks: Attacks, kind: str) -> None:
    def attack() -> None:
        for seed in range(1 if kind in CONNECTIONS else 3):
            attacks.run(kind, random.Random(seed))

    assert runs_without_a_stall(server, attack)
    answer = HTTP.post(f"{server.v1}/chat/completions", json=body(image(GRID), "Describe this image."), timeout=60)
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_request_does_not_block_the_event_loop(server: Server, name: str) -> None:
    path, request = HEAVY[name]

    def ask() -> None:
        answer = HTTP.post(f"{server.url}{path}", json=request, timeout=120)
        assert answer.status_code == 200, answer.text[:200]

    assert runs_without_a_stall(server, ask)


def test_answer_memory_is_counted_until_the_client_has_read_it(server: Server) -> None:
    """The engine has finished by then."""

    def held() -> float:
        lines = HTTP.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("llava_answer_bytes "))

    path, request = HEAVY["log probabilities"]
    with HTTP.stream("POST", f"{server.url}{path}", json=request, timeout=120) as answer:
        assert held() > int(answer.headers["content-length"]) // 2
        answer.read()
    wait_for(lambda: held() == 0)
