"""SambaStudio's predict API: what its clients send, and what they get."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from helpers.field_rows import rows
from helpers.requests import image, user
from helpers.server import ROOT, Server
from helpers.waiting import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import Message

from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import (
    Conversation,
    InputsBody,
    Instance,
    InstanceBody,
    InstancesBody,
    Item,
    ItemsBody,
    Prompt,
    Turn,
    to_chat,
)
from llava_gateway.api.sambastudio.render import Prediction, render_error, render_error_event
from llava_gateway.api.sambastudio.router import NLP, V1, V2, Endpoint
from llava_gateway.demo.images import Grid, describe, draw, encode
from llava_gateway.errors import GatewayError, InvalidRequest, Unavailable
from llava_gateway.http.response import ResponseWriter
from llava_gateway.prompts.templates import CURIOUS_HUMAN
from llava_gateway.types import Delta, SamplingParams, Text, TokenLogprob, Usage

IDS = "my-project/my-endpoint"
PATH = f"/api/predict/generic/{IDS}"
STREAM = f"/api/predict/generic/stream/{IDS}"
V2_PATH = f"/api/v2/predict/generic/{IDS}"
V2_STREAM = f"/api/v2/predict/generic/stream/{IDS}"
NLP_PATH = f"/api/predict/nlp/{IDS}"
NLP_STREAM = f"/api/predict/nlp/stream/{IDS}"
GRID: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")
NO_IMAGE = "I see no image. I am a small demo model: send me an image and ask me to describe it."
LEAKS = re.compile(r"0x[0-9a-f]+|BytesIO|Traceback|site-packages|/home/|/root/|\.py\b")
PREDICTION = {"completion", "logprobs", "prompt", "stop_reason", "tokens", "total_tokens_count"}
TIMES = {"start_time", "end_time", "model_execution_time", "time_to_first_token", "throughput_after_first_token"}
COUNTS = {"prompt_tokens_count", "completion_tokens_count", "batch_size_used"}


def picture(grid: Grid) -> str:
    return base64.b64encode(encode(draw(grid))).decode()


def about(*grids: Grid, prompt: str = "Describe this image.") -> dict[str, Any]:
    content = [picture(grid) for grid in grids]
    return {"prompt": prompt, "image_content": content[0] if len(content) == 1 else content}


def typed(**params: Any) -> dict[str, Any]:
    """As SambaStudio's clients in Python write parameters."""
    return {name: {"type": type(value).__name__, "value": str(value)} for name, value in params.items()}


def post(server: Server, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=120, **options)


def predict(server: Server, *instances: Any, **params: Any) -> list[dict[str, Any]]:
    answer = post(server, PATH, {"instances": list(instances), "params": typed(**({"max_tokens_to_generate": 200} | params))})
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def lines(answer: httpx.Response) -> list[Any]:
    """As clients read a stream: an empty line, or anything that is not JSON, breaks them."""
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]


def responses(answer: httpx.Response) -> list[dict[str, Any]]:
    return [line["result"]["responses"][0] for line in lines(answer)]


def ended_well(pieces: list[dict[str, Any]]) -> str:
    """The text of a stream that is whole."""
    *first, last = pieces
    assert all(set(piece) == {"stream_token", "is_last_response"} and not piece["is_last_response"] for piece in first)
    assert set(last) == {"stream_token", "is_last_response"} | PREDICTION | TIMES | COUNTS
    assert (last["stream_token"], last["is_last_response"]) == ("", True)
    text = "".join(piece["stream_token"] for piece in first)
    assert last["completion"] == text
    return text


def refused(answer: httpx.Response, status: int, field: str = "") -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert not LEAKS.search(answer.text)
    assert set(answer.json()) == {"detail"}
    detail: str = answer.json()["detail"]
    assert re.match(re.escape(field) + r"(: | is not supported)", detail) if field else detail
    return detail


def counted(server: Server, prompt: str, *grids: Grid) -> int:
    """What the OpenAI door says that the same prompt costs."""
    messages = [{"role": "system", "content": CURIOUS_HUMAN}, user(*map(image, grids), prompt)]
    count: int = httpx.post(f"{server.url}/tokenize", json={"messages": messages, "chat_template": "llava-hf"}).json()["count"]
    return count


def test_the_documented_request(server: Server) -> None:
    params = {
        "do_sample": {"type": "bool", "value": "false"},
        "max_tokens_to_generate": {"type": "int", "value": "1000"},
        "preprocessing": {"type": "str", "value": "llava-hf"},
        "select_expert": {"type": "str", "value": "llava-v1.5-7b-hf"},
    }
    asked = {"instances": [about(GRID)], "params": params}
    start = time.monotonic()
    answer = post(server, PATH, asked, headers={"key": "none"})
    assert answer.status_code == 200
    assert set(answer.json()) == {"status", "predictions"}
    status = answer.json()["status"]
    assert 0 < status.pop("elapsedTime") < time.monotonic() - start
    assert status == {"complete": True, "exitCode": 0, "message": "", "progress": 1, "progressMessage": "", "reason": ""}
    (prediction,) = answer.json()["predictions"]
    tokens, total = prediction.pop("tokens"), prediction.pop("total_tokens_count")
    assert prediction == {
        "completion": describe([GRID]),
        "logprobs": {"text_offset": [], "top_logprobs": []},
        "prompt": f"{CURIOUS_HUMAN} USER: <image>\nDescribe this image. ASSISTANT:",
        "stop_reason": "end_of_text",
    }
    assert "".join(tokens) == describe([GRID])
    text = counted(server, "Describe this image.", GRID) - 576
    assert total == text + 576 + len(tokens) + 1  # the end of the text is a token


def test_text(server: Server) -> None:
    """An instance is an object, or only its prompt."""
    for instance in ("Hello", {"prompt": "Hello"}, {"prompt": "Hello", "image_content": None}):
        (prediction,) = predict(server, instance)
        assert prediction["completion"] == NO_IMAGE
        assert prediction["total_tokens_count"] == counted(server, "Hello") + len(prediction["tokens"]) + 1


def test_an_image_that_is_missing_is_not_made_up(server: Server) -> None:
    for prompt in ("Describe this image.", "<image>\nDescribe this image."):
        (prediction,) = predict(server, {"prompt": prompt})
        assert "no image" in prediction["completion"]


def test_two_images(server: Server) -> None:
    (prediction,) = predict(server, about(GRID, OTHER, prompt="Describe these images."))
    assert prediction["completion"] == describe([GRID, OTHER])
    assert prediction["prompt"].count("<image>") == 2
    completion = len(prediction["tokens"]) + 1
    assert prediction["total_tokens_count"] == counted(server, "Describe these images.", GRID, OTHER) + completion


def test_images_are_base64_of_any_format(server: Server) -> None:
    data = encode(draw(GRID), "JPEG", quality=95)
    for content in (base64.b64encode(data).decode(), base64.encodebytes(data).decode(), "data:image/png;base64," + picture(GRID)):
        (prediction,) = predict(server, {"prompt": "What color is the bottom right?", "image_content": content})
        assert prediction["completion"] == "Orange."


def test_a_batch_comes_back_in_order(server: Server) -> None:
    colors = ("red", "blue", "green", "white", "black")
    instances: list[Any] = [about((color, "red", "blue", "green"), prompt="What color is the top left?") for color in colors]
    instances.insert(2, "Hello")
    completions = [prediction["completion"] for prediction in predict(server, *instances)]
    assert completions == ["Red.", "Blue.", NO_IMAGE, "Green.", "White.", "Black."]


@pytest.mark.parametrize("path", [PATH, V2_PATH, NLP_PATH])
def test_a_batch_of_the_largest_size(server: Server, path: str) -> None:
    holder, answers = {PATH: ("instances", "predictions"), V2_PATH: ("items", "items"), NLP_PATH: ("inputs", "data")}[path]
    prompts: list[Any] = ["Hello"] * 128
    asked = {holder: [{"value": prompt} for prompt in prompts] if path == V2_PATH else prompts, "params": {"max_tokens_to_generate": 1}}
    assert len(post(server, path, asked).json()[answers]) == 128
    refused(post(server, path, asked | {holder: asked[holder] + asked[holder][:1]}), 400, holder)


def test_params_typed_and_plain(server: Server) -> None:
    """Either form on either path, and `str` of Python's values."""
    plain = {"max_tokens_to_generate": 4, "do_sample": False, "top_p": 0.5, "stop_sequences": ["zebra"]}
    written = {name: {"type": "whatever", "value": value} for name, value in plain.items()}
    for params in (plain, typed(**plain), written, plain | {"temperature": None, "brand_new": {"type": "int", "value": "1"}}):
        prediction = post(server, PATH, {"instances": ["Hello"], "params": params}).json()["predictions"][0]
        item = post(server, V2_PATH, {"items": [{"value": "Hello"}], "params": params}).json()["items"][0]["value"]
        assert prediction == item
        assert (len(prediction["tokens"]), prediction["stop_reason"]) == (4, "max_len_reached")


def test_defaults(server: Server) -> None:
    """No params: greedy, and a hundred tokens at most."""
    asked = {"instances": [about(*[GRID] * 4, prompt="Describe these images.")] * 2}
    first, second = post(server, PATH, asked).json()["predictions"]
    assert len(first["tokens"]) == 100
    assert first["stop_reason"] == "max_len_reached"
    assert first["completion"] == second["completion"]
    assert describe([GRID] * 4).startswith(first["completion"])


def test_sampling_is_drawn_only_where_it_is_asked_for(server: Server) -> None:
    hot = {"temperature": 2.0, "top_k": 1000, "max_tokens_to_generate": 20}
    drawn = {prediction["completion"] for prediction in predict(server, *["Hello"] * 8, do_sample=True, **hot)}
    greedy = {prediction["completion"] for prediction in predict(server, *["Hello"] * 8, do_sample=False, **hot)}
    assert len(drawn) > 1
    assert len(greedy) == 1
    assert {prediction["completion"] for prediction in predict(server, *["Hello"] * 8, **hot | {"top_k": 1}, do_sample=True)} == greedy


@pytest.mark.parametrize("value", ["color", '"zebra","color"', '["color"]', "['zebra', 'color']"])
def test_stop_sequences(server: Server, value: str) -> None:
    (prediction,) = predict(server, "Hello", stop_sequences="image. I")
    assert (prediction["completion"], prediction["stop_reason"]) == ("I see no ", "stop_sequence")
    assert "".join(prediction["tokens"]).startswith("I see no image. I")
    (prediction,) = predict(server, "Hello", stop_sequences=value.replace("color", "small"))
    assert (prediction["completion"], prediction["stop_reason"]) == ("I see no image. I am a ", "stop_sequence")


def test_the_template_of_sambanovas_checkpoints(server: Server) -> None:
    (prediction,) = predict(server, about(GRID), preprocessing="llava-sn")
    assert prediction["prompt"] == f"{CURIOUS_HUMAN}\n\n### Human: Describe this image.\n<image>\n\n###"
    assert "###" not in prediction["completion"]


def test_logprobs(server: Server) -> None:
    (prediction,) = predict(server, about(GRID), top_logprobs=3)
    offsets, tops = prediction["logprobs"]["text_offset"], prediction["logprobs"]["top_logprobs"]
    assert "".join(prediction["tokens"]) == prediction["completion"] == describe([GRID])
    for token, offset, top in zip(prediction["tokens"], offsets, tops, strict=True):
        assert prediction["completion"][offset:].startswith(token)
        assert next(iter(top)) == token  # greedy: the likeliest
        assert 1 <= len(top) <= 3
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert top[token] <= 0


def conversation(*turns: tuple[str, str | None], **fields: Any) -> str:
    messages = [{"message_id": None, "role": role, "content": content} for role, content in turns]
    return json.dumps({"conversation_id": "some-id", "messages": messages} | fields)


def test_conversations(server: Server) -> None:
    turns = (("user", "Describe this image."), ("assistant", describe([GRID])), ("user", "What color is the bottom right?"))
    instance = {"prompt": conversation(*turns), "image_content": picture(GRID)}
    (prediction,) = predict(server, instance, process_prompt=True)
    assert prediction["completion"] == "Orange."
    prompt = f"USER: <image>\nDescribe this image. ASSISTANT: {describe([GRID])}</s>USER: What color is the bottom right? ASSISTANT:"
    assert prediction["prompt"] == f"{CURIOUS_HUMAN} {prompt}"
    instance["prompt"] = conversation(("system", "You are a helpful assistant."), *turns)
    (prediction,) = predict(server, instance, process_prompt=True)
    assert prediction["completion"] == "Orange."
    assert prediction["prompt"] == f"You are a helpful assistant. {prompt}"
    (text,) = predict(server, conversation(("user", "Hello")), process_prompt=True)
    assert text["completion"] == NO_IMAGE
    (as_it_is,) = predict(server, conversation(("user", "Hello")), process_prompt=False)
    assert '"conversation_id"' in as_it_is["prompt"]


def test_a_stream(server: Server) -> None:
    asked = {"instance": about(GRID), "params": typed(max_tokens_to_generate=200, top_logprobs=2)}
    before = time.time()
    answer = post(server, STREAM, asked)
    assert answer.headers["content-type"] == "application/json-lines"
    pieces = responses(answer)
    assert ended_well(pieces) == describe([GRID])
    assert len(pieces) > 10
    last = pieces[-1]
    (whole,) = predict(server, about(GRID), top_logprobs=2)
    assert {name: last[name] for name in PREDICTION - {"logprobs"}} == {name: whole[name] for name in PREDICTION - {"logprobs"}}
    assert last["logprobs"]["text_offset"] == whole["logprobs"]["text_offset"]
    assert last["prompt_tokens_count"] + last["completion_tokens_count"] == last["total_tokens_count"]
    assert last["completion_tokens_count"] == len(last["tokens"]) + 1
    assert before <= last["start_time"] < last["end_time"] <= time.time()
    assert 0 < last["time_to_first_token"] < last["model_execution_time"] == pytest.approx(last["end_time"] - last["start_time"], abs=1e-3)
    after = (last["completion_tokens_count"] - 1) / (last["model_execution_time"] - last["time_to_first_token"])
    assert 0 < last["throughput_after_first_token"] <= after * 1.01
    assert last["batch_size_used"] == 1


def test_streams_of_text_and_of_two_images(server: Server) -> None:
    assert ended_well(responses(post(server, STREAM, {"instance": "Hello"}))) == NO_IMAGE
    asked = {"instance": about(GRID, OTHER, prompt="Describe these images."), "params": typed(max_tokens_to_generate=200)}
    assert ended_well(responses(post(server, STREAM, asked))) == describe([GRID, OTHER])


def test_a_stream_that_stops(server: Server) -> None:
    asked = {"instance": "Hello", "params": typed(stop_sequences=" am a")}
    pieces = responses(post(server, STREAM, asked))
    assert ended_well(pieces) == "I see no image. I"
    assert pieces[-1]["stop_reason"] == "stop_sequence"
    pieces = responses(post(server, STREAM, asked | {"params": typed(max_tokens_to_generate=3)}))
    assert (pieces[-1]["stop_reason"], pieces[-1]["completion_tokens_count"]) == ("max_len_reached", 3)


def test_a_silent_stream_is_kept_alive_without_breaking_anybody(server: Server) -> None:
    """All text is held back for a long stop sequence, and there is a lot of it."""
    grids = [(first, *GRID[1:]) for first in ("red", "blue", "green", "white", "black", "purple")]
    params = {"max_tokens_to_generate": 400, "stop_sequences": ["x" * 10_000]}
    instance = about(*grids, prompt="Describe these images.")

    def ask(_: int) -> list[str]:
        pieces = responses(post(server, STREAM, {"instance": instance, "params": params}))
        ended_well(pieces)
        return [piece["stream_token"] for piece in pieces]

    with ThreadPoolExecutor(4) as pool:  # each makes the others slower
        streams = list(pool.map(ask, range(4)))
    for tokens in streams:
        assert len([token for token in tokens if token]) == 1
    assert max(tokens.index(next(filter(None, tokens))) for tokens in streams) >= 1  # something came before the text


def test_v2(server: Server) -> None:
    asked = {
        "items": [{"id": "item0", "value": about(GRID)}, {"value": "Hello"}, {"id": "c", "value": conversation(("user", "Hello"))}],
        "params": {"max_tokens_to_generate": 200, "do_sample": False},
    }
    items = post(server, V2_PATH, asked).json()["items"]
    assert [item["id"] for item in items] == ["item0", "1", "c"]
    assert all(set(item) == {"id", "value"} and set(item["value"]) == PREDICTION for item in items)
    assert [item["value"]["completion"] for item in items[:2]] == [describe([GRID]), NO_IMAGE]
    asked = {"items": asked["items"][2:], "params": {"process_prompt": True}}
    assert post(server, V2_PATH, asked).json()["items"][0]["value"]["completion"] == NO_IMAGE


def test_v2_stream(server: Server) -> None:
    asked = {"items": [{"id": "item0", "value": about(GRID)}], "params": {"max_tokens_to_generate": 200}}
    items = [line["result"]["items"] for line in lines(post(server, V2_STREAM, asked))]
    assert all(len(item) == 1 and item[0]["id"] == "item0" for item in items)
    assert ended_well([item[0]["value"] for item in items]) == describe([GRID])
    refused(post(server, V2_STREAM, {"items": [{"value": "Hello"}] * 2}), 400, "items")


def test_nlp(server: Server) -> None:
    data = post(server, NLP_PATH, {"inputs": ["Hello", "Describe this image."], "params": typed(max_tokens_to_generate=50)}).json()["data"]
    assert [prediction["completion"] for prediction in data] == [NO_IMAGE, NO_IMAGE]
    assert set(data[0]) == PREDICTION


def test_nlp_stream(server: Server) -> None:
    answer = post(server, NLP_STREAM, {"inputs": ["Hello"]})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, rest = answer.text.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert ended_well([json.loads(event.removeprefix("data: ")) for event in events]) == NO_IMAGE
    refused(post(server, NLP_STREAM, {"inputs": ["Hello", "Hello"]}), 400, "inputs")


PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens_to_generate": "0"}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": "4097"}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": "many"}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": "2.5"}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": 2.5}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": True}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": []}, "max_tokens_to_generate"),
    ({"max_tokens_to_generate": "9" * 5000}, "max_tokens_to_generate"),
    ({"do_sample": "yes"}, "do_sample"),
    ({"do_sample": 1}, "do_sample"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": "nan"}, "temperature"),
    ({"temperature": "inf"}, "temperature"),
    ({"temperature": "-0.1"}, "temperature"),
    ({"temperature": "2.1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_k": "0"}, "top_k"),
    ({"top_k": "1001"}, "top_k"),
    ({"top_p": "0"}, "top_p"),
    ({"top_p": "1.1"}, "top_p"),
    ({"top_logprobs": "21"}, "top_logprobs"),
    ({"top_logprobs": "-1"}, "top_logprobs"),
    ({"repetition_penalty": "0.9"}, "repetition_penalty"),
    ({"repetition_penalty": "11"}, "repetition_penalty"),
    ({"preprocessing": "llama"}, "preprocessing"),
    ({"preprocessing": ["llava-sn"]}, "preprocessing"),
    ({"process_prompt": "maybe"}, "process_prompt"),
    ({"stop_sequences": "['a'"}, "stop_sequences"),
    ({"stop_sequences": r"['\N{x}']"}, "stop_sequences"),
    ({"stop_sequences": r"['\ud800']"}, "stop_sequences[0]"),
    ({"stop_sequences": '"'}, "stop_sequences"),
    ({"stop_sequences": str(["a"] * 17)}, "stop_sequences"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"stop_sequences": ["a", ""]}, "stop_sequences[1]"),
    ({"stop_sequences": "[1]"}, "stop_sequences[0]"),
    ({"stop_sequences": {"a": 1}}, "stop_sequences"),
    ({"stop_sequences": "x" * 10_001}, "stop_sequences[0]"),
    ({"stop_sequences": "[" * 100_000}, "stop_sequences"),
    ({"return_token_count_only": "true"}, "return_token_count_only"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
]


@pytest.mark.parametrize(("params", "field"), PARAMS, ids=lambda value: str(value)[:50])
def test_bad_params(server: Server, params: dict[str, Any], field: str) -> None:
    as_typed = {name: {"type": "x", "value": value} for name, value in params.items()}
    refused(post(server, PATH, {"instances": ["Hello"], "params": as_typed}), 400, f"params.{field}")
    refused(post(server, V2_STREAM, {"items": [{"value": "Hello"}], "params": params}), 400, f"params.{field}")


BODIES: list[tuple[str, dict[str, Any], str]] = [
    (PATH, {}, "instances"),
    (PATH, {"instances": "Hello"}, "instances"),
    (PATH, {"instances": []}, "instances"),
    (PATH, {"instances": [5]}, "instances[0]"),
    (PATH, {"instances": ["Hello", None]}, "instances[1]"),
    (PATH, {"instances": [""]}, "instances[0]"),
    (PATH, {"instances": [{}]}, "instances[0].prompt"),
    (PATH, {"instances": [{"prompt": ["Hello"]}]}, "instances[0].prompt"),
    (PATH, {"instances": [{"prompt": ""}]}, "instances[0].prompt"),
    (PATH, {"instances": [{"prompt": "Hello", "image_content": ""}]}, "instances[0].image_content"),
    (PATH, {"instances": [{"prompt": "Hello", "image_content": 5}]}, "instances[0].image_content"),
    (PATH, {"instances": [{"prompt": "Hello", "image_content": {"url": "x"}}]}, "instances[0].image_content"),
    (PATH, {"instances": [{"prompt": "Hello", "image_content": ["", 5]}]}, "instances[0].image_content[0]"),
    (PATH, {"instances": [{"prompt": "Hello", "image_content": [picture(GRID)] * 1025}]}, "instances[0].image_content"),
    (PATH, {"instances": [about(*[GRID] * 8)]}, "instances[0].prompt"),
    (PATH, {"instances": ["word " * 6000]}, "instances[0]"),
    (PATH, {"instances": ["Hello", "Hello"], "params": {"max_tokens_to_generate": 4096}}, "instances[0]"),
    (PATH, {"instances": [{"prompt": "A" * 300_000}]}, "instances[0].prompt"),
    (PATH, {"instances": ["Hello"], "params": []}, "params"),
    (PATH, {"instances": ["Hello"], "params": "{}"}, "params"),
    (PATH, {"instances": ["Hello"], "params": {str(number): 1 for number in range(101)}}, "params"),
    (PATH, {"instances": [5] * 500_000}, "instances[0]"),
    (STREAM, {"instances": ["Hello"]}, "instance"),
    (STREAM, {"instance": ["Hello"]}, "instance"),
    (STREAM, {"instance": {"prompt": 5}}, "instance.prompt"),
    (STREAM, {"instance": ""}, "instance"),
    (STREAM, {"instance": "word " * 6000}, "instance"),
    (V2_PATH, {"items": {}}, "items"),
    (V2_PATH, {"items": ["Hello"]}, "items[0]"),
    (V2_PATH, {"items": [{"id": "a"}]}, "items[0].value"),
    (V2_PATH, {"items": [{"id": 5, "value": "Hello"}]}, "items[0].id"),
    (V2_PATH, {"items": [{"id": "x" * 257, "value": "Hello"}]}, "items[0].id"),
    (V2_PATH, {"items": [{"value": {"prompt": "Hello", "image_content": True}}]}, "items[0].value.image_content"),
    (NLP_PATH, {"inputs": "Hello"}, "inputs"),
    (NLP_PATH, {"inputs": [{"prompt": "Hello"}]}, "inputs[0]"),
    (NLP_STREAM, {"inputs": []}, "inputs"),
]


@pytest.mark.parametrize(("path", "body", "field"), BODIES, ids=lambda value: str(value)[:50])
def test_bad_bodies(server: Server, path: str, body: dict[str, Any], field: str) -> None:
    refused(post(server, path, body), 400, field)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("Hello", ""),
        ("[]", ""),
        ("[" * 10_000, ""),
        ("{}", ".messages"),
        ('{"messages": []}', ""),
        (conversation(("system", "Be brief.")), ""),
        (conversation(("user", "")), ""),
        (conversation(("king", "Hello")), ".messages[0].role"),
        (conversation(("user", "Hello"), ("tool", "5")), ".messages[1].role"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', ".messages[0].content"),
        ('{"messages": [{"role": ["user"], "content": "Hello"}]}', ".messages[0].role"),
        (json.dumps({"messages": [5] * 100_000}), ".messages[0]"),
        (conversation(*[("user", "a")] * 2049), ".messages"),
        (conversation(("user", "Hello"), tools=[{"type": "function"}]), ".tools"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_conversations(server: Server, prompt: str, field: str) -> None:
    refused(post(server, PATH, {"instances": [prompt], "params": typed(process_prompt=True)}), 400, "instances[0]" + field)
    asked = {"items": [{"value": {"prompt": prompt}}], "params": {"process_prompt": True}}
    refused(post(server, V2_STREAM, asked), 400, "items[0].value.prompt" + field)


BROKEN = {
    "no base64": "!!!!",
    "no image": base64.b64encode(b"hello, world").decode(),
    "half an image": picture(GRID)[:400],
    "a path": "/etc/passwd",
    "too thin": base64.b64encode(encode(draw(GRID, (1, 4000)))).decode(),
    "too many pixels": base64.b64encode(encode(draw(GRID, (9000, 6000)))).decode(),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_images(server: Server, broken: str) -> None:
    instance = {"prompt": "Describe this image.", "image_content": broken}
    refused(post(server, PATH, {"instances": [about(GRID), instance]}), 400, "instances[1].image_content")
    refused(post(server, STREAM, {"instance": instance | {"image_content": [picture(GRID), broken]}}), 400, "instance.image_content[1]")
    refused(post(server, V2_PATH, {"items": [{"value": instance}]}), 400, "items[0].value.image_content")


def test_what_is_no_request(server: Server) -> None:
    json_type = {"content-type": "application/json"}
    for path in (PATH, STREAM, V2_PATH, V2_STREAM, NLP_PATH, NLP_STREAM):
        refused(httpx.post(server.url + path, content=b"{", headers=json_type), 400)
        refused(httpx.post(server.url + path, content=b"[]", headers=json_type), 400)
        refused(httpx.post(server.url + path, content=b"{}", headers={"content-type": "text/plain"}), 415)
        refused(httpx.get(server.url + path), 405)
    refused(httpx.post(server.url + PATH, content=b" " * (9 << 20), headers=json_type), 413)


def metric(server: Server, name: str) -> float:
    page = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.split()[-1]) for line in page if line.startswith(name))


@contextmanager
def a_client_that_leaves(server: Server) -> Iterator[None]:
    """What the block asks for is given up, and nothing is left of it."""
    wait_for(lambda: metric(server, "llava_requests_inside ") == 0)
    left = metric(server, "llava_client_disconnects_total ")
    yield
    wait_for(lambda: metric(server, "llava_requests_inside ") == 0)
    assert metric(server, "llava_client_disconnects_total ") == left + 1
    wait_for(lambda: metric(server, "vllm:num_requests_running") == 0)


@pytest.mark.parametrize("path", [STREAM, V2_STREAM])
def test_a_client_that_leaves_its_stream(server: Server, path: str) -> None:
    prompt = about(*[GRID] * 6, prompt="Describe these images.")
    asked = {"instance": prompt, "items": [{"value": prompt}], "params": {"max_tokens_to_generate": 500}}
    with a_client_that_leaves(server), httpx.stream("POST", server.url + path, json=asked, timeout=120) as answer:
        assert answer.status_code == 200
        assert next(answer.iter_lines())


@pytest.mark.parametrize("path", [PATH, NLP_PATH])
def test_a_client_that_leaves_its_batch(server: Server, path: str) -> None:
    asked = {"instances": [about(*[GRID] * 4)] * 16, "inputs": ["Hello"] * 128, "params": {"max_tokens_to_generate": 100}}
    with a_client_that_leaves(server), pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + path, json=asked, timeout=httpx.Timeout(60, read=0.2))


def test_after_all_that_the_server_still_answers(server: Server) -> None:
    (prediction,) = predict(server, about(OTHER))
    assert prediction["completion"] == describe([OTHER])


def sent(error: GatewayError, started: bool, render: Any) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(render(error, ResponseWriter(send, started=started)))
    return messages


def test_errors_of_streams_that_have_begun() -> None:
    error = Unavailable("The engine has died.", code="engine_dead", retry_after=10)
    piece, end = sent(error, True, render_error)
    said = {"status_code": 503, "error": {"code": "engine_dead", "message": "The engine has died.", "details": ""}}
    assert piece["body"].endswith(b"}\n")
    assert json.loads(piece["body"]) == said
    assert not end.get("more_body")
    piece, _ = sent(error, True, render_error_event)
    name, data = piece["body"].removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error_event"
    assert json.loads(data.removeprefix(b"data: ")) == said


def test_errors_say_when_to_come_back() -> None:
    for render in (render_error, render_error_event):
        start, body = sent(Unavailable("The model is loading.", retry_after=5), False, render)
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"5")
        assert json.loads(body["body"]) == {"detail": "The model is loading."}


def test_half_characters_and_tokens_that_are_spelt_alike() -> None:
    places = (
        TokenLogprob(b"\xc3", -0.1, ((b"\xc3", -0.1), (b"a", -1.0), (b"a", -2.0))),
        TokenLogprob(b"\xa9", -0.2, ((b"\xa9", -0.2),)),
        TokenLogprob(b"!", -0.3, ((b"!", -0.3),)),
    )
    plan: Any = SimpleNamespace(sampling=SamplingParams(logprobs=3))
    answer: Any = SimpleNamespace(prompt="", usage=Usage(prompt_tokens=5, completion_tokens=4))
    prediction = Prediction(plan, answer)
    prediction.add(Delta(0, "é!", 3, "stop", None, places))
    rendered = prediction.render()
    assert rendered["tokens"] == ["<0xC3>", "<0xA9>", "!"]
    assert rendered["logprobs"]["text_offset"] == [0, 0, 1]
    assert rendered["logprobs"]["top_logprobs"][0] == {"<0xC3>": -0.1, "a": -1.0}


@pytest.mark.parametrize(
    ("project", "endpoint", "model"),
    [
        ("some", "thing", "served"),
        ("some", "alias", "alias"),
        ("alias", "thing", "alias"),
        ("llava-hf", "llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
@pytest.mark.parametrize("form", [V1, V2, NLP])
def test_the_path_may_name_the_model(form: Any, project: str, endpoint: str, model: str) -> None:
    gateway: Any = SimpleNamespace(model_name="served", models={"served": None, "alias": "llava-sn", "llava-hf/llava-1.5-7b-hf": None})
    bodies: Any = None
    assert Endpoint(form, gateway, bodies)._model(project=project, endpoint=endpoint) == model


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def junk(*keys: str) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=20)
        | st.sampled_from(["user", "true", "1"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=3),
        max_leaves=6,
    )


@UNHURRIED
@given(st.dictionaries(st.sampled_from([*Params.model_fields, *Params.refused]), junk("type", "value"), max_size=4))
def test_params_are_taken_or_refused_by_name(given_params: dict[str, Any]) -> None:
    try:
        sampling = Params.parse(given_params).sampling()
    except InvalidRequest as error:
        assert error.param
        assert error.param.split(".")[1].split("[")[0] in given_params
        assert error.message.startswith(error.param)
    else:
        assert type(sampling.max_tokens) is int
        assert type(sampling.temperature) is float
        assert all(type(stop) is str and stop for stop in sampling.stop)


@UNHURRIED
@given(st.lists(st.text(min_size=1, max_size=20), max_size=16), st.sampled_from([str, json.dumps, lambda them: json.dumps(them)[1:-1]]))
def test_lists_of_stop_sequences_in_text(strings: list[str], write: Callable[[list[str]], str]) -> None:
    assert Params.parse({"stop_sequences": {"type": "list", "value": write(strings)}}).stop_sequences == strings


@UNHURRIED
@given(st.text(max_size=20))
def test_any_text_is_a_stop_sequence_a_list_or_refused(text: str) -> None:
    try:
        found = Params.parse({"stop_sequences": text}).stop_sequences
    except InvalidRequest:
        assert text[0] in '["'
    else:
        assert found == ([text] if text else []) or text[0] in '["'


@UNHURRIED
@given(junk("messages", "role", "content", "tools") | st.lists(junk("role", "content")).map(lambda turns: {"messages": turns}))
def test_any_conversation_is_taken_or_refused_by_name(given_conversation: Any) -> None:
    prompt = Prompt(json.dumps(given_conversation), "instances[0].prompt")
    try:
        chat = to_chat(prompt, Params.parse({"process_prompt": True}), "m", stream=False)
    except InvalidRequest as error:
        assert str(error.param).startswith("instances[0].prompt")
    else:
        turns = [turn["role"] for turn in given_conversation["messages"]]
        assert [message.role for message in chat.messages] == ([] if "system" in turns else ["system"]) + turns


def test_images_go_with_the_first_message_of_the_user() -> None:
    text = conversation(("system", "Be brief."), ("user", "a"), ("assistant", None), ("user", "b"))
    (prompt,) = InstanceBody.parse({"instance": {"prompt": text, "image_content": ["x", "y"]}}).prompts()
    chat = to_chat(prompt, Params.parse({"process_prompt": "true", "preprocessing": "llava-sn"}), "m", stream=True)
    system, first, assistant, second = chat.messages
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user"]
    assert (system.content, assistant.content, second.content) == ((Text("Be brief."),), (), (Text("b"),))
    assert first.content == (*prompt.images, Text("a"))
    assert [each.param for each in prompt.images] == ["instance.image_content[0]", "instance.image_content[1]"]
    assert (chat.template, chat.stream) == ("llava-sn", True)


def test_example(server: Server) -> None:
    command = (sys.executable, "examples/sambastudio.py")
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=os.environ | {"LLAVA_URL": server.url}, check=True
    )
    first, second, streamed = ended.stdout.splitlines()
    truth = describe([("red", "blue", "green", "white")])
    assert re.fullmatch(re.escape(truth) + r" \[end_of_text, \d+ tokens\]", first)
    assert second.startswith(describe([("yellow", "black", "orange", "purple")]))
    assert re.fullmatch(re.escape(truth) + r" \[\d+\.\d\d s to the first token\]", streamed)


PAGE = (ROOT / "docs" / "sambastudio.md").read_text()
DECLARED: tuple[type[BaseModel], ...] = (InstancesBody, InstanceBody, ItemsBody, InputsBody, Instance, Item, Params, Conversation, Turn)


def field_rows() -> Iterator[str]:
    for model in DECLARED:
        yield from rows(model)


def test_the_page_says_what_is_done_with_every_field() -> None:
    for row in field_rows():
        assert row in PAGE, row
    named = re.findall(r"^\| `[a-z_]+` \| (?:honoured|ignored|refused) \|.*$", PAGE, re.MULTILINE)
    assert set(named) == set(field_rows())


def test_the_pages_request(server: Server) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    script = script.replace("http://127.0.0.1:8000", server.url)
    ended = subprocess.run(("bash", "-euo", "pipefail"), input=script, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    (prediction,) = json.loads(ended.stdout)["predictions"]
    assert prediction["completion"] == describe([("red", "blue", "green", "white")])


def test_the_page_names_every_field_of_the_answers(server: Server) -> None:
    last = responses(post(server, STREAM, {"instance": "Hello"}))[-1]
    assert {name for name in last if f"`{name}`" not in PAGE and f'"{name}"' not in PAGE} == set()
