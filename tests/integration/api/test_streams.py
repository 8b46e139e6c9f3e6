"""The frames of streams, and the order and times in which they are sent."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.contract import frames
from helpers.requests import body, image
from helpers.server import Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import COLORS

GRID = ("red", "blue", "green", "orange")
CHAT = "/v1/chat/completions"


def test_silent_stream_gets_keep_alive_comments(http: httpx.Client) -> None:
    """All text is held back for a long stop string, for about two seconds; a comment is sent every half second."""
    asked = body("Hello", stream=True, stop="x" * 10_000, ignore_eos=True, max_tokens=1000)
    text = http.post(CHAT, json=asked).text
    assert text.count(": keep-alive\n\n") >= 2
    assert len([frame for frame in frames(text) if '"content":"' in frame]) == 2  # the role, and the whole text


def test_busy_stream_has_no_keep_alive_comments(http: httpx.Client) -> None:
    assert ": keep-alive" not in http.post(CHAT, json=body("Hello", stream=True, ignore_eos=True, max_tokens=500)).text


def test_status_line_does_not_wait_for_the_first_token(server: Server) -> None:
    """Behind 15 other requests with four new images each, the first token takes longer than the half second of `--keep-alive`."""
    colors = list(COLORS)

    def ask(number: int) -> tuple[float, float]:
        images = [image((colors[number % 8], colors[number // 8], colors[place], "red")) for place in range(4)]
        start = time.monotonic()
        with httpx.stream("POST", server.url + CHAT, json=body(*images, "Describe.", max_tokens=2, stream=True), timeout=120) as answer:
            began = time.monotonic() - start
            text = answer.read().decode()
        assert answer.status_code == 200
        tokens = [json.loads(frame) for frame in list(frames(text))[:-1]]
        assert tokens[-1]["choices"][0]["finish_reason"] == "length"
        return began, time.monotonic() - start

    with ThreadPoolExecutor(16) as pool:
        times = list(pool.map(ask, range(16)))
    began, ended = max(times, key=lambda pair: pair[1])
    if ended > 2:  # on a faster machine the test has no meaning
        assert began < ended - 0.5


@pytest.mark.parametrize("n", [1, 3])
def test_continuous_usage_stats_grow(http: httpx.Client, n: int) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = body(image(GRID), "Describe this image.", stream=True, stream_options=options, n=n, temperature=1, seed=1)
    *events, _ = frames(http.post(CHAT, json=asked).text)
    usages = [json.loads(event)["usage"] for event in events]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[:n] == [0] * n  # the chunks with the roles
    assert counts[-1] > counts[0]
    assert all(usage["prompt_tokens"] == usages[-1]["prompt_tokens"] for usage in usages)
    assert usages[-1]["prompt_tokens_details"]["image_tokens"] == 576
    asked["stream_options"] = {"continuous_usage_stats": True}  # it has no effect alone, as with vLLM
    assert '"usage"' not in http.post(CHAT, json=asked).text


def test_choices_of_a_stream_begin_in_order(http: httpx.Client) -> None:
    for seed in range(5):
        asked = body("Hello", stream=True, n=5, temperature=2, seed=seed, max_tokens=10)
        *events, _ = frames(http.post(CHAT, json=asked).text)
        first_seen = list(dict.fromkeys(choice["index"] for event in events for choice in json.loads(event)["choices"]))
        assert first_seen == [0, 1, 2, 3, 4]


def test_slow_reader_gets_all_tokens_in_fewer_chunks(server: Server) -> None:
    """Five choices with log probabilities are more than the sockets hold. The reader begins when the engine has generated all tokens."""
    asked = body("Hello", stream=True, n=5, temperature=1, seed=3, ignore_eos=True, max_tokens=500, logprobs=True, top_logprobs=20)
    generated = server.engine_tokens()
    with httpx.stream("POST", server.url + CHAT, json=asked, timeout=120) as answer:
        wait_for(lambda: server.engine_tokens() >= generated + 5 * 500, 120)
        *events, done = frames(answer.read().decode())
    assert done == "[DONE]"
    tokens = dict.fromkeys(range(5), 0)
    ended = []
    for choice in (choice for event in events for choice in json.loads(event)["choices"]):
        tokens[choice["index"]] += len((choice["logprobs"] or {"content": ()})["content"])
        ended += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    assert tokens == dict.fromkeys(range(5), 500)
    assert ended == ["length"] * 5
    assert len(events) < 5 * 500


def test_vllms_metrics_count_every_token(http: httpx.Client) -> None:
    """They do although the gateway enters the numbers in bulk."""

    def counts() -> tuple[float, float, float]:
        names = (
            "vllm:generation_tokens_total{",
            "vllm:inter_token_latency_seconds_count{",
            'vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf"',
        )
        lines = http.get("/metrics").text.splitlines()
        written, gaps, all_gaps = (float(line.split()[-1]) for name in names for line in lines if line.startswith(name))
        return written, gaps, all_gaps

    before = counts()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: http.post(CHAT, json=body("Hello", ignore_eos=True, max_tokens=50)), range(3)))
    wait_for(lambda: [after - was for was, after in zip(before, counts(), strict=True)] == [150, 147, 147])


def test_bad_streaming_request_is_refused_before_the_stream(http: httpx.Client) -> None:
    for fields in (
        {"logprobs": True, "top_logprobs": 21},
        {"min_tokens": 99_999, "max_tokens": 99_999},
        {"logit_bias": {"9999": 1}},
        {"structured_outputs": {"regex": "("}},
    ):
        assert http.post(CHAT, json=body("Hello", stream=True) | fields).status_code == 400
