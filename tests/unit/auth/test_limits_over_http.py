"""Limits of keys as clients meet them: a real server on a real socket, and an engine that says as many tokens as it is told to."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from helpers.limits import Redis, needs_redis
from helpers.requests import MODEL
from helpers.waiting import wait_for

from llava_gateway.app import create_app
from llava_gateway.auth.api_keys import Key, KeyFile, digest
from llava_gateway.demo import CHECKPOINT
from llava_gateway.errors import EngineFailed, InvalidRequest
from llava_gateway.model_info import LoraAdapter, ModelInfo, VisionConfig
from llava_gateway.settings import Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage

pytestmark = pytest.mark.slow

MINE = {"authorization": "Bearer mine"}


class Speaker:
    """An engine that says `tokens` tokens, or as many as it may, once it is let."""

    stage = "ready"
    dead = False

    def __init__(self) -> None:
        self.tokens: int | None = None
        self.open = threading.Event()
        self.open.set()
        self.asked = 0
        self.fails: Exception | None = None

    async def start(self) -> ModelInfo:
        return ModelInfo(
            tokenizer=Tokenizer((CHECKPOINT / "tokenizer.json").read_text()),
            chat_template="{% for message in messages %}{% for part in message.content %}{{ part['text'] }}{% endfor %}{% endfor %}",
            special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
            image_token="<image>",
            vision=VisionConfig(336, lambda width, height: 576, min_image_tokens=576, max_image_tokens=576),
            context_length=8192,
        )

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        raise InvalidRequest("No such structure.", param="structured_outputs")

    async def load_adapter(self, adapter: LoraAdapter) -> None: ...

    async def unload_adapter(self, adapter: LoraAdapter) -> None: ...

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        self.asked += 1
        if self.fails:
            raise self.fails
        usage.prompt_tokens = len(prompt.token_ids)
        await asyncio.to_thread(self.open.wait)
        tokens = min(sampling.max_tokens or 0, self.tokens or 10**6)
        for index in range(sampling.n):
            usage.completion_tokens += tokens
            on_delta(Delta(index, "Yes.", tokens, "stop"))

    async def check(self, timeout: float) -> None: ...

    async def stop(self) -> None: ...


class Served:
    def __init__(self, url: str, engine: Speaker) -> None:
        self.engine = engine
        self.http = httpx.Client(base_url=url, headers=MINE, timeout=30, limits=httpx.Limits(max_connections=100))

    def ask(self, prompt: int | list[int], max_tokens: int, **fields: Any) -> httpx.Response:
        """`prompt`: how many tokens; several prompts have as many each."""
        given = [5] * prompt if isinstance(prompt, int) else [[5] * each for each in prompt]
        body = {"model": MODEL, "prompt": given, "max_tokens": max_tokens, **fields}
        return self.http.post("/v1/completions", json=body)

    @property
    def remaining(self) -> int:
        return int(self.http.get("/v1/models").headers["x-ratelimit-remaining-tokens"])


@contextmanager
def serve(folder: Path, storage: str = "memory", **limits: Any) -> Iterator[Served]:
    file = KeyFile(folder / "keys.json")
    if not file.path.exists():
        file.add(Key("mine", digest("mine"), **limits))
        file.add(Key("other", digest("other"), **limits))
    engine = Speaker()
    app = create_app(Settings(model=MODEL, keys_file=str(file.path), rate_limit_storage=storage, keep_alive=0.5), engine=lambda: engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    served = Served(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", engine)
    try:
        wait_for(lambda: served.http.get("/ready").status_code == 200)
        yield served
    finally:
        engine.open.set()
        served.http.close()
        server.should_exit = True
        thread.join(20)


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


def at_once(served: Served, number: int, *asked: Any, **fields: Any) -> list[httpx.Response]:
    """All of them are inside before one of them ends."""
    with ThreadPoolExecutor(number) as pool:
        served.engine.open.clear()
        answers = [pool.submit(served.ask, *asked, **fields) for _ in range(number)]
        wait_for(lambda: sum(answer.done() for answer in answers) + served.engine.asked >= number)
        served.engine.open.set()
        return [answer.result() for answer in answers]


def test_concurrent_requests_share_the_token_limit(tmp_path: Path) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        answers = at_once(served, 40, 10, 490)
        assert statuses(answers) == {200: 2, 429: 38}
        assert all(55 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)
        assert served.remaining == 0
        with httpx.Client(base_url=served.http.base_url, headers={"key": "other"}) as other:
            assert other.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == "1000"


def test_gateways_with_one_redis_share_the_limit(tmp_path: Path) -> None:
    needs_redis()
    with Redis(tmp_path) as redis, serve(tmp_path, redis.url, tokens_per_minute=1000) as one, serve(tmp_path, redis.url) as two:
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda served: at_once(served, 20, 10, 490), (one, two))
        assert statuses([answer for answers in both for answer in answers]) == {200: 2, 429: 38}


@pytest.mark.parametrize("stream", [False, True])
def test_unused_tokens_are_given_back(tmp_path: Path, stream: bool) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        served.engine.tokens = 20
        for number in range(1, 6):
            assert served.ask(10, 900, stream=stream).status_code == 200
            wait_for(partial(lambda number: served.remaining == 1000 - 30 * number, number))


def test_all_choices_and_prompts_count(tmp_path: Path) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        served.engine.open.clear()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(served.ask, [10, 20], 50, n=3)
            wait_for(lambda: served.engine.asked == 2)
            assert served.remaining == 1000 - 30 - 2 * 3 * 50
            served.engine.tokens = 5
            served.engine.open.set()
            answer = asked.result()
        assert answer.json()["usage"]["total_tokens"] == 60
        assert answer.headers["x-ratelimit-remaining-tokens"] == "940"


def test_prompts_that_fit_are_admitted_with_the_remaining_tokens(tmp_path: Path) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        assert served.ask([10] * 20, 500).status_code == 200
        refused = served.ask(1, 1)
        assert refused.status_code == 429
        assert 9 * 60 < int(refused.headers["retry-after"]) <= 11 * 60  # all 10,200 tokens are paid for


def test_refused_request_costs_no_tokens(tmp_path: Path) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        for _ in range(3):
            assert served.ask([400] * 3, 10).status_code == 429
            assert served.ask(1001, 10).headers["x-should-retry"] == "false"
            assert served.ask(400, 10, structured_outputs={"regex": "a"}).status_code == 400
            assert served.ask(400, 10, images=["data:image/png;base64,AAAA"]).status_code == 400
            served.engine.fails = EngineFailed("It failed.")
            assert served.ask(400, 10).status_code == 500
            served.engine.fails = None
        assert served.remaining == 1000


def test_disconnected_client_pays_for_the_used_tokens(tmp_path: Path) -> None:
    with serve(tmp_path, tokens_per_minute=1000) as served:
        served.engine.open.clear()
        with served.http.stream("POST", "/v1/completions", json={"model": MODEL, "prompt": [5] * 100, "max_tokens": 800, "stream": True}):
            wait_for(lambda: served.remaining == 100)
        wait_for(lambda: served.remaining == 900)


@pytest.mark.parametrize("spoil", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "device"])
def test_keys_file_that_becomes_a_fifo_does_not_block_the_server(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    with serve(tmp_path, requests_per_minute=1000) as served:
        file, good = tmp_path / "keys.json", tmp_path / "good.json"
        file.rename(good)
        spoil(tmp_path / "bad.json")
        for target, status in (("bad.json", 503), ("good.json", 200)) * 2:
            (tmp_path / "link.json").symlink_to(target)
            (tmp_path / "link.json").replace(file)
            wait_for(partial(lambda status: served.http.get("/v1/models").status_code == status, status))
            assert served.http.get("/health").status_code == 200
