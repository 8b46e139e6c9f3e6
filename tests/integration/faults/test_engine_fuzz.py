"""The engine survives every combination of valid fields. Its memory is so small that requests are preempted and prompts are chunked."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench.fuzz import SERVERS, Fuzz
from helpers.requests import MODEL, body, image
from helpers.server import Server, serve
from helpers.waiting import wait_for

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("small"), *SERVERS["small"]) as server:
        yield server


@pytest.fixture(autouse=True)
def the_engine_lives(small: Server) -> Iterator[None]:
    yield
    assert small.metric("llava_engine_restarts") == 0
    wait_for(lambda: small.metric("vllm:num_requests_running", "llava_requests_running ") == 0)


def ask(server: Server, *asked: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    """Send all requests at once, and return their responses."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await asyncio.gather(*(http.post(path, json={"model": MODEL} | fields) for path, fields in asked))

    return asyncio.run(send())


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [choice.get("text") or choice["message"]["content"] for choice in answer.json()["choices"]]


def test_concurrent_seeded_chats_with_images_do_not_end_the_engine(small: Server) -> None:
    colors = ("red", "blue", "green", "white", "black", "orange", "red", "blue")
    chats = [body(image((color, "blue", "red", "red")), "Hello", temperature=1, seed=7, max_tokens=20) for color in colors]
    for answer in ask(small, *((CHAT, chat) for chat in chats)):
        assert answer.status_code == 200, answer.text


def test_seeded_long_prompts_do_not_end_the_engine(small: Server) -> None:
    prompts = ["hello world " * 390 + str(number) for number in range(4)]
    (answer,) = ask(small, (COMPLETIONS, {"prompt": prompts, "max_tokens": 4, "seed": 1}))
    assert len(texts(answer)) == 4


@pytest.mark.slow
def test_seeded_answer_is_the_same_after_preemption(small: Server) -> None:
    """Sixteen choices need more memory than there is. vLLM gives choice i the seed + i, so each also equals a single answer."""
    fields = {"prompt": "hello world", "seed": 0, "temperature": 2, "max_tokens": 400, "ignore_eos": True, "skip_special_tokens": False}
    alone = {index: texts(*ask(small, (COMPLETIONS, fields | {"seed": index})))[0] for index in (0, 7, 15)}
    before = small.metric("vllm:num_preemptions_total")
    together = texts(*ask(small, (COMPLETIONS, fields | {"n": 16})))
    assert small.metric("vllm:num_preemptions_total") > before
    assert {index: together[index] for index in alone} == alone


def test_seeded_answer_is_the_same_with_chunked_prefill(small: Server) -> None:
    """A prompt fits into one step when it comes alone. Among others it gets the rest of a step."""
    prompts = [f"{number} " + "hello world " * 60 for number in range(8)]
    asked = [(COMPLETIONS, {"prompt": prompt, "seed": 3, "temperature": 2, "max_tokens": 30}) for prompt in prompts]
    alone = [texts(*ask(small, each)) for each in asked]
    assert [texts(answer) for answer in ask(small, *asked)] == alone


def test_scores_of_prompts_are_the_same_with_chunked_prefill(small: Server) -> None:
    """The engine computes the log probabilities in parts, and puts them together."""
    prompts = [f"{number} " + "hello world " * 200 for number in range(8)]
    asked = [(COMPLETIONS, {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 2}) for prompt in prompts]

    def scores(answer: httpx.Response) -> list[float]:
        assert answer.status_code == 200, answer.text
        return list(answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:])

    alone = [scores(*ask(small, each)) for each in asked]
    assert [scores(answer) for answer in ask(small, *asked)] == [pytest.approx(each, abs=0.01) for each in alone]


@pytest.mark.slow
def test_concurrent_random_requests_do_not_end_the_engine(small: Server, tmp_path: Path) -> None:
    """`make fuzz` sends more requests, to more kinds of servers."""
    Fuzz(small, tmp_path).run(batches=12, seed=18, size=12)
