"""The engine survives every combination of valid fields, with so little memory that requests are preempted, and prompts read in parts."""

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
    assert metric(small, "llava_engine_restarts") == 0
    wait_for(lambda: metric(small, "vllm:num_requests_running") + metric(small, "llava_requests_running") == 0)


def metric(server: Server, name: str) -> float:
    lines = httpx.get(server.url + "/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def ask(server: Server, *asked: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    """All at once."""

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


def test_seeded_answer_is_the_same_after_preemption(small: Server) -> None:
    """Sixteen choices need more memory than there is. vLLM gives choice i the seed + i, so each is also an answer of its own."""
    fields = {"prompt": "hello world", "seed": 0, "temperature": 2, "max_tokens": 400, "ignore_eos": True, "skip_special_tokens": False}
    alone = {index: texts(*ask(small, (COMPLETIONS, fields | {"seed": index})))[0] for index in (0, 7, 15)}
    before = metric(small, "vllm:num_preemptions_total")
    gather_limited = texts(*ask(small, (COMPLETIONS, fields | {"n": 16})))
    assert metric(small, "vllm:num_preemptions_total") > before
    assert {index: gather_limited[index] for index in alone} == alone


def test_seeded_answer_is_the_same_with_chunked_prefill(small: Server) -> None:
    """Short enough to be read at once when it comes alone; among others it gets what is left of a step."""
    prompts = [f"{number} " + "hello world " * 60 for number in range(8)]
    asked = [(COMPLETIONS, {"prompt": prompt, "seed": 3, "temperature": 2, "max_tokens": 30}) for prompt in prompts]
    alone = [texts(*ask(small, each)) for each in asked]
    assert [texts(answer) for answer in ask(small, *asked)] == alone


def test_concurrent_random_requests_do_not_end_the_engine(small: Server, tmp_path: Path) -> None:
    """`make fuzz` sends more of them, to more kinds of server."""
    Fuzz(small, tmp_path).run(batches=12, seed=18, size=12)
