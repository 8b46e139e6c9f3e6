"""Text completions with an engine that says what the test tells it to: the shapes of answers, and streams of several prompts."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from helpers.contract import check, frames
from helpers.errors import refused
from helpers.requests import MODEL
from helpers.silent_engine import SilentEngine
from starlette.testclient import TestClient

from llava_gateway.app import create_app
from llava_gateway.errors import EngineFailed, InvalidRequest
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, PromptLogprobs, SamplingParams, TokenLogprob, Usage

PATH = "/v1/completions"
RED, BLUE, GREEN = 4, 5, 6
"""Token ids. Their texts are those of the demo model's tokenizer."""


class ScriptedEngine(SilentEngine):
    """An engine that answers each prompt with its last token, once it has got `expected` prompts."""

    def __init__(self) -> None:
        self.expected = 1
        self._complete = asyncio.Event()
        self.running = self.most_running = 0
        self.failing: dict[int, Exception] = {}
        """By the last token of the prompt."""
        self.prompts: list[Prompt] = []

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
        self.prompts.append(prompt)
        if len(self.prompts) >= self.expected:
            self._complete.set()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            usage.prompt_tokens = len(prompt.token_ids)
            if error := self.failing.get(prompt.token_ids[-1]):
                raise error
            await self._complete.wait()
            if sampling.prompt_logprobs is not None:
                on_delta(Delta(0, "", 0, prompt_logprobs=scores(prompt.token_ids)))
            for index in range(sampling.n):
                usage.completion_tokens += 1
                token = prompt.token_ids[-1]
                logprob = TokenLogprob(b"\xc3", -3.0, ((b"red", -0.5),), token, (RED,))
                logprobs = () if sampling.logprobs is None else (logprob,)
                token_ids = (token,) if sampling.return_token_ids else ()
                on_delta(Delta(index, f"[{token}]", 1, "stop", "END", logprobs, token_ids=token_ids))
        finally:
            self.running -= 1


def scores(token_ids: list[int]) -> PromptLogprobs:
    """Return log probabilities of a prompt: each token has -2, and the tokens RED and its own are the likeliest."""
    ids, logprobs, ranks = list[int](), list[float](), list[int]()
    for token in token_ids[1:]:
        ids += [token, RED, token]
        logprobs += [-2.0, -0.5, -2.0]
        ranks += [2, 1, 2]
    ends = [3 * position for position in range(len(token_ids))]
    return PromptLogprobs([0, *ends[:-1]], ends, ids, logprobs, ranks)


@contextmanager
def serve(**settings: Any) -> Iterator[tuple[TestClient, ScriptedEngine]]:
    engine = ScriptedEngine()
    with TestClient(create_app(Settings(model=MODEL, **settings), engine=lambda: engine), base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            pass
        yield client, engine


def ask(client: TestClient, prompt: Any, **fields: Any) -> httpx.Response:
    response: Any = client.post(PATH, json={"model": MODEL, "prompt": prompt} | fields)
    check("POST", PATH, response.status_code, response.headers, response.content)
    return response  # type: ignore[no-any-return]


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(event) for event in list(frames(response.text))[:-1]]


def test_sampled_token_is_listed_after_likelier_ones() -> None:
    with serve() as (client, _):
        logprobs = ask(client, [RED, BLUE], logprobs=1).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"red": -0.5, "bytes:\\xc3": -3.0}]


def test_tokens_show_as_ids_if_asked() -> None:
    with serve() as (client, _):
        asked = {"logprobs": 1, "return_tokens_as_token_ids": True, "return_token_ids": True}
        choice = ask(client, [RED, BLUE], **asked).json()["choices"][0]
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "return_tokens_as_token_ids": True}
        answer = client.post("/v1/chat/completions", json=chat | {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}).json()
    assert choice["logprobs"]["tokens"] == [f"token_id:{BLUE}"]
    assert choice["logprobs"]["top_logprobs"] == [{f"token_id:{RED}": -0.5, f"token_id:{BLUE}": -3.0}]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([RED, BLUE], [BLUE])
    last = answer["prompt_token_ids"][-1]
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["bytes"], token["top_logprobs"][0]["token"]) == (f"token_id:{last}", [0xC3], f"token_id:{RED}")
    assert answer["choices"][0]["token_ids"] == [last]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_has_the_tokens_of_the_prompt_before_those_of_the_answer(stream: bool) -> None:
    with serve() as (client, engine):
        response = ask(client, "Hello", echo=True, logprobs=1, n=2, temperature=1, stream=stream)
        names = [
            engine.prompts[0].token_ids,
            client.post("/tokenize", json={"prompt": "Hello", "return_token_strs": True}).json()["token_strs"],
        ]
    whole: dict[int, dict[str, Any]] = {}
    for choice in [choice for chunk in chunks(response) for choice in chunk["choices"]] if stream else response.json()["choices"]:
        found = whole.setdefault(choice["index"], {"text": ""} | {name: [] for name in choice["logprobs"]})
        found["text"] += choice["text"]
        for name, values in choice["logprobs"].items():
            found[name] += values
    count = len(names[0])
    assert list(whole) == [0, 1]
    for found in whole.values():
        assert found["text"] == f"Hello[{names[0][-1]}]"
        assert found["token_logprobs"] == [None] + [-2.0] * (count - 1) + [-3.0]
        assert found["top_logprobs"][0] is None
        assert all(found["top_logprobs"][place][found["tokens"][place]] == -2.0 for place in range(1, count))
        assert found["text_offset"][0] == found["text_offset"][1] == 0  # `<s>` is not in the text
        assert found["text_offset"][-1] == len("Hello")


def test_prompt_logprobs_have_vllms_form() -> None:
    with serve() as (client, _):
        choice = ask(client, [RED, BLUE], prompt_logprobs=1).json()["choices"][0]
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 0}
        answer = client.post("/v1/chat/completions", json=chat).json()
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert second[str(BLUE)] | {"decoded_token": None} == {"logprob": -2.0, "rank": 2, "decoded_token": None}
    assert list(second) == [str(BLUE), str(RED)]
    assert choice["logprobs"] is None
    assert answer["prompt_logprobs"][0] is None
    assert all(len(position) == 1 for position in answer["prompt_logprobs"][1:])


def test_memory_of_prompt_logprobs_is_bounded() -> None:
    with serve(max_answers_mb=1) as (client, _):
        refused(ask(client, [RED] * 500, prompt_logprobs=20, max_tokens=0), 400, "max_tokens")
        refused(ask(client, [[RED], [RED] * 500], logprobs=20, echo=True, max_tokens=0, stream=True), 400, "max_tokens")
        assert ask(client, [RED] * 200, prompt_logprobs=20, max_tokens=0).status_code == 200


def test_prompts_of_a_stream_run_at_most_max_running_at_a_time() -> None:
    with serve(max_running=2) as (client, engine):
        engine.expected = 2
        prompts = [[RED, 4 + number] for number in range(6)]
        response = ask(client, prompts, n=2, temperature=1, stream=True, stream_options={"include_usage": True})
        *answers, last = chunks(response)
        assert engine.most_running == 2
    assert {chunk["choices"][0]["index"]: chunk["choices"][0]["text"] for chunk in answers} == {
        2 * number + choice: f"[{4 + number}]" for number in range(6) for choice in range(2)
    }
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (12, 12)


def test_refused_prompt_of_a_list_has_a_status_and_a_failed_one_ends_the_stream() -> None:
    with serve() as (client, engine):
        engine.failing = {RED: InvalidRequest("No.", param="logit_bias")}
        refused(ask(client, [[RED], [RED, RED]], stream=True), 400, "logit_bias")
        engine.failing = {GREEN: EngineFailed("The engine failed.")}
        response = ask(client, [[RED, BLUE], [RED, GREEN]], stream=True)
        assert response.status_code == 200
        assert "error" in chunks(response)[-1]
        assert engine.running == 0


@pytest.mark.parametrize(("best_of", "status"), [(None, 200), (1, 200), (3, 200), (2, 400), (4, 400)])
def test_best_of_must_equal_n(best_of: int | None, status: int) -> None:
    with serve() as (client, _):
        assert ask(client, [RED], n=3, best_of=best_of).status_code == status


def test_choices_are_bounded_by_the_sum_of_their_tokens() -> None:
    """16 times the context of 65,536 tokens."""
    with serve() as (client, _):
        assert ask(client, [RED], n=128, max_tokens=8192).status_code == 200
        refused(ask(client, [RED], n=128, max_tokens=8193), 400, "n")
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 128}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200


def test_stop_reason_is_in_the_last_chunk_and_in_the_whole_answer() -> None:
    with serve() as (client, _):
        assert ask(client, [RED]).json()["choices"][0]["stop_reason"] == "END"
        (chunk,) = chunks(ask(client, [RED], stream=True))
    assert (chunk["choices"][0]["finish_reason"], chunk["choices"][0]["stop_reason"]) == ("stop", "END")


def test_cache_salt_reaches_the_engine() -> None:
    with serve() as (client, engine):
        ask(client, [RED], cache_salt="secret")
        client.post("/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "cache_salt": "x"})
        ask(client, [RED])
    assert [prompt.cache_salt for prompt in engine.prompts] == ["secret", "x", None]
