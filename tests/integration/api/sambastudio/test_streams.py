"""SambaStudio's predict API: streams, and clients that disconnect."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from helpers.documentation import run_example
from helpers.sambastudio import (
    DOCUMENT,
    GRID,
    NLP_PATH,
    NLP_STREAM,
    NO_IMAGE,
    OTHER,
    PATH,
    PREDICTION,
    STREAM,
    V2_STREAM,
    about,
    post,
    predict,
    refused,
    typed,
)
from helpers.server import ROOT, Server, send_post
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe

TIMES = {"start_time", "end_time", "model_execution_time", "time_to_first_token", "throughput_after_first_token"}
COUNTS = {"prompt_tokens_count", "completion_tokens_count", "batch_size_used"}


def lines(answer: httpx.Response) -> list[Any]:
    """Return the lines of a stream. An empty line, or a line that is not JSON, would break clients."""
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]


def responses(answer: httpx.Response) -> list[dict[str, Any]]:
    return [line["result"]["responses"][0] for line in lines(answer)]


def complete_text(pieces: list[dict[str, Any]]) -> str:
    """Return the text of a stream, after a check that it is complete."""
    *first, last = pieces
    assert all(set(piece) == {"stream_token", "is_last_response"} and not piece["is_last_response"] for piece in first)
    assert set(last) == {"stream_token", "is_last_response"} | PREDICTION | TIMES | COUNTS
    assert (last["stream_token"], last["is_last_response"]) == ("", True)
    text = "".join(piece["stream_token"] for piece in first)
    assert last["completion"] == text
    return text


def test_stream_ends_with_the_same_prediction_as_without_a_stream(server: Server) -> None:
    asked = {"instance": about(GRID), "params": typed(max_tokens_to_generate=200, top_logprobs=2)}
    before = time.time()
    answer = post(server, STREAM, asked)
    assert answer.headers["content-type"] == "application/json-lines"
    pieces = responses(answer)
    assert complete_text(pieces) == describe([GRID])
    assert len(pieces) > 1
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


def test_text_and_two_images_are_streamed(server: Server) -> None:
    assert complete_text(responses(post(server, STREAM, {"instance": "Hello"}))) == NO_IMAGE
    asked = {"instance": about(GRID, OTHER, prompt="Describe these images."), "params": typed(max_tokens_to_generate=200)}
    assert complete_text(responses(post(server, STREAM, asked))) == describe([GRID, OTHER])


def test_stream_tells_why_it_stopped(server: Server) -> None:
    asked = {"instance": "Hello", "params": typed(stop_sequences=" am a")}
    pieces = responses(post(server, STREAM, asked))
    assert complete_text(pieces) == "I see no image. I"
    assert pieces[-1]["stop_reason"] == "stop_sequence"
    pieces = responses(post(server, STREAM, asked | {"params": typed(max_tokens_to_generate=3)}))
    assert (pieces[-1]["stop_reason"], pieces[-1]["completion_tokens_count"]) == ("max_len_reached", 3)


def test_silent_stream_gets_valid_keep_alive_pieces(server: Server) -> None:
    """All text is held back for a long stop sequence, so pieces without text keep the stream alive."""
    grids = [(first, *GRID[1:]) for first in ("red", "blue", "green", "white", "black", "purple")]
    params = {"max_tokens_to_generate": 400, "stop_sequences": ["x" * 10_000]}
    instance = about(*grids, prompt="Describe these images.")

    def ask(_: int) -> list[str]:
        pieces = responses(post(server, STREAM, {"instance": instance, "params": params}))
        complete_text(pieces)
        return [piece["stream_token"] for piece in pieces]

    with ThreadPoolExecutor(4) as pool:  # each request slows down the others
        streams = list(pool.map(ask, range(4)))
    for tokens in streams:
        assert len([token for token in tokens if token]) == 1
    assert max(tokens.index(next(filter(None, tokens))) for tokens in streams) >= 1  # at least one piece came before the text


def test_v2_stream_has_the_items_id_and_one_item(server: Server) -> None:
    asked = {"items": [{"id": "item0", "value": about(GRID)}], "params": {"max_tokens_to_generate": 200}}
    items = [line["result"]["items"] for line in lines(post(server, V2_STREAM, asked))]
    assert all(len(item) == 1 and item[0]["id"] == "item0" for item in items)
    assert complete_text([item[0]["value"] for item in items]) == describe([GRID])
    refused(post(server, V2_STREAM, {"items": [{"value": "Hello"}] * 2}), 400, "items")


def test_nlp_stream_is_an_event_stream_of_one_input(server: Server) -> None:
    answer = post(server, NLP_STREAM, {"inputs": ["Hello"]})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, rest = answer.text.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert complete_text([json.loads(event.removeprefix("data: ")) for event in events]) == NO_IMAGE
    refused(post(server, NLP_STREAM, {"inputs": ["Hello", "Hello"]}), 400, "inputs")


@contextmanager
def cancelled_request(server: Server) -> Iterator[None]:
    """Check that the request of the block is cancelled after it, and that nothing of it stays in the server."""
    wait_for(lambda: server.metric("llava_requests_inside ") == 0)
    left = server.metric("llava_client_disconnects_total ")
    yield
    wait_for(lambda: server.metric("llava_requests_inside ") == 0)
    wait_for(lambda: server.metric("llava_client_disconnects_total ") == left + 1)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0)


@pytest.mark.parametrize("path", [STREAM, V2_STREAM])
def test_disconnect_from_a_stream_ends_the_request(server: Server, path: str) -> None:
    prompt = about(*[GRID] * 6, prompt="Describe these images.")
    asked = {"instance": prompt, "items": [{"value": prompt}], "params": {"max_tokens_to_generate": 500}}
    with cancelled_request(server), httpx.stream("POST", server.url + path, json=asked, timeout=120) as answer:
        assert answer.status_code == 200
        assert next(answer.iter_lines())


@pytest.mark.parametrize("path", [PATH, NLP_PATH])
def test_disconnect_from_a_batch_ends_the_request(server: Server, path: str) -> None:
    asked = {"instances": [about(*[GRID] * 4)] * 16, "inputs": ["Hello"] * 128, "params": {"max_tokens_to_generate": 100}}
    with cancelled_request(server), send_post(server, path, asked):
        wait_for(lambda: server.metric("llava_requests_running ") > 0)


def test_sambastudio_example_runs(server: Server) -> None:
    first, second, streamed = run_example(server, "sambastudio.py")
    truth = describe([("red", "blue", "green", "white")])
    assert re.fullmatch(re.escape(truth) + r" \[end_of_text, \d+ tokens\]", first)
    assert second.startswith(describe([("yellow", "black", "orange", "purple")]))
    assert re.fullmatch(re.escape(truth) + r" \[\d+\.\d\d s to the first token\]", streamed)


def test_documented_curl_request_works(server: Server) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    script = script.replace("http://127.0.0.1:8000", server.url)
    ended = subprocess.run(("bash", "-euo", "pipefail"), input=script, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    (prediction,) = json.loads(ended.stdout)["predictions"]
    assert prediction["completion"] == describe([("red", "blue", "green", "white")])


def test_documentation_names_every_response_field(server: Server) -> None:
    last = responses(post(server, STREAM, {"instance": "Hello"}))[-1]
    assert {name for name in last if f"`{name}`" not in DOCUMENT and f'"{name}"' not in DOCUMENT} == set()
