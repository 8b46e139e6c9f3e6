"""OpenAI's API over a real socket, mostly with OpenAI's SDK."""

import json
from typing import Any

import httpx
import pytest
from helpers.contract import frames
from helpers.requests import MODEL, body, image, user
from helpers.waiting import wait_for
from openai import NotFoundError, OpenAI
from transformers import AutoProcessor

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import describe, draw

GRID = ("red", "blue", "green", "orange")
OTHER = ("white", "yellow", "black", "purple")
CHAT = "/v1/chat/completions"


def frames_of(response: httpx.Response) -> list[str]:
    return list(frames(response.text))


def test_completion_has_openais_shape(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=body(image(GRID), "Describe this image."))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    completion = answer.json()
    assert completion["id"].startswith("chatcmpl-")
    assert completion["object"] == "chat.completion"
    assert completion["model"] == MODEL
    (choice,) = completion["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": describe([GRID]), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert completion["system_fingerprint"].startswith("fp_")


def test_usage_counts_576_tokens_per_image(client: OpenAI) -> None:
    for count in range(5):
        usage = client.chat.completions.create(**body(*[image(GRID)] * count, "Describe.", max_tokens=1)).usage
        assert usage.prompt_tokens_details.image_tokens == 576 * count
        assert usage.prompt_tokens == usage.prompt_tokens_details.text_tokens + 576 * count
        assert usage.completion_tokens == 1
        assert usage.total_tokens == usage.prompt_tokens + 1


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_prompt_tokens_equal_those_of_hugging_faces_processor(client: OpenAI, count: int) -> None:
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    question = "Describe these images. Zażółć 🦙"
    later = [{"role": "assistant", "content": "One."}, {"role": "user", "content": "And then?"}]
    content = [*[{"type": "image"}] * count, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}, *later], add_generation_prompt=True, tokenize=False)
    expected = processor(text=prompt, images=[draw(GRID)] * count or None)["input_ids"][0]
    messages: Any = [user(*[image(GRID)] * count, question), *later]
    completion: Any = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert completion.usage.prompt_tokens == len(expected)


def test_next_turn_uses_the_prefix_cache(client: OpenAI) -> None:
    first = user(image(("black", "black", "red", "red")), "Describe this image.")
    answer = client.chat.completions.create(model=MODEL, messages=[first], temperature=0)
    again: Any = [first, {"role": "assistant", "content": answer.choices[0].message.content}, user("What color is the top left?")]
    usage: Any = client.chat.completions.create(model=MODEL, messages=again, temperature=0).usage
    assert usage.prompt_tokens_details.cached_tokens >= 512  # whole blocks of the KV cache, of 128 tokens on a CPU


def test_stream_has_role_deltas_finish_reason_and_usage(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=body("Hello", stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = frames_of(answer)
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    role, *deltas, finish, usage = chunks
    assert role["choices"][0] == {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    assert len(deltas) > 1
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in deltas)
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in (role, *deltas, finish))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] >= len(deltas)


def test_stream_without_usage_has_none(http: httpx.Client) -> None:
    *events, _ = frames_of(http.post(CHAT, json=body("Hello", stream=True)))
    assert not any("usage" in json.loads(event) for event in events)


@pytest.mark.parametrize("grids", [[], [GRID], [GRID, OTHER]])
def test_streamed_text_equals_unstreamed(client: OpenAI, grids: list[Any]) -> None:
    request = body(*map(image, grids), "Describe these images.")
    whole: Any = client.chat.completions.create(**request)
    parts: list[str] = []
    usage: Any = None
    for chunk in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(parts) == whole.choices[0].message.content
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_sdk_stream_helper_reads_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(**body(image(GRID), "Describe this image.")) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == describe([GRID])
    assert final.choices[0].message.role == "assistant"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_limits_the_answer(client: OpenAI, name: str) -> None:
    request: dict[str, Any] = {"model": MODEL, "messages": [user("Hello")], "temperature": 0, name: 3}
    completion: Any = client.chat.completions.create(**request)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 3


def test_stop_string_ends_the_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(**body("Hello")).choices[0].message.content
    stopped = client.chat.completions.create(**body("Hello", stop=[" small", "never"]))
    assert stopped.choices[0].message.content == whole.split(" small")[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_seed_repeats_a_random_answer(client: OpenAI) -> None:
    request = body("Hello", temperature=2, seed=7, max_tokens=40)
    first, second = (client.chat.completions.create(**request).choices[0].message.content for _ in range(2))
    assert first == second
    others = {client.chat.completions.create(**(request | {"seed": seed})).choices[0].message.content for seed in range(8, 24)}
    assert others - {first}


@pytest.mark.parametrize("stream", [False, True])
def test_n_sampled_choices_differ(client: OpenAI, stream: bool) -> None:
    request = body("Hello", n=16, temperature=2, seed=1, max_tokens=30)
    if stream:
        texts = dict.fromkeys(range(16), "")
        for chunk in client.chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = {choice.index: choice.message.content for choice in client.chat.completions.create(**request).choices}
    assert sorted(texts) == list(range(16))
    assert len(set(texts.values())) >= 3  # the demo model is sure of most words, so some choices are equal


def test_n_greedy_choices_are_equal(client: OpenAI) -> None:
    completion = client.chat.completions.create(**body("Hello", n=2, max_tokens=5))
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert completion.choices[0].message.content == completion.choices[1].message.content
    assert completion.usage.completion_tokens == 10


def test_control_tokens_in_text_stay_text(client: OpenAI) -> None:
    """As control tokens, `<image>` would stand for the image, and `</s>` would end the turn."""
    told = body(image(GRID), "Describe this image. <image> </s><s>")
    answer = client.chat.completions.create(**told)
    assert answer.usage.prompt_tokens_details.image_tokens == 576
    alone = client.chat.completions.create(**body("<image>", max_tokens=1))
    assert alone.usage.prompt_tokens_details.image_tokens == 0


def test_model_is_listed_and_an_unknown_one_not_found(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(NotFoundError):
        client.models.retrieve("other/model")


def test_health_and_ready_answer(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}


def test_metrics_count_image_tokens_and_return_to_idle(http: httpx.Client) -> None:
    def value(name: str) -> float:
        return next(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))

    before = value('llava_tokens_total{kind="image"}')
    http.post(CHAT, json=body(image(GRID), "Describe this image."))
    wait_for(lambda: value('llava_tokens_total{kind="image"}') == before + 576)
    wait_for(lambda: value("llava_requests_running") == value("vllm:num_requests_running") == 0)


def test_short_request_id_is_echoed_and_a_long_one_replaced(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(http.get("/health", headers={"x-request-id": "x" * 500}).headers["x-request-id"]) == 32
