"""The gateway's own way from the engine's tokens to the socket gives the same answers as vLLM's."""

import json
from typing import Any

import httpx
import pytest
from helpers.origin import GRID
from helpers.requests import image, user
from helpers.server import HTTP, FeedbackServer, Server

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 60},
    "sampled": {"temperature": 1.3, "seed": 7, "max_tokens": 80},
    "characters of several tokens": {"temperature": 2, "seed": 3, "max_tokens": 200, "ignore_eos": True},
    "two choices": {"temperature": 1, "seed": 5, "n": 2, "max_tokens": 30},
    "log probabilities": {"temperature": 0, "logprobs": True, "top_logprobs": 2, "max_tokens": 10},
    "stop string": {"temperature": 1.5, "seed": 11, "stop": ["e", "zz"], "max_tokens": 60},
    "stop string that stays": {"temperature": 1.5, "seed": 11, "stop": ["a"], "include_stop_str_in_output": True, "max_tokens": 60},
    "control tokens": {"temperature": 1.5, "seed": 13, "ignore_eos": True, "skip_special_tokens": False, "max_tokens": 60},
    "token ids": {"temperature": 0, "return_token_ids": True, "max_tokens": 12},
    "usage in every chunk": {"temperature": 0, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "max_tokens": 12},
    "one token": {"temperature": 0, "max_tokens": 1},
    "format": {"temperature": 0, "response_format": {"type": "json_object"}, "max_tokens": 40},
}


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("images", [0, 2])
def test_answer_is_that_of_vllms_way(server: Server, feedback_server: FeedbackServer, case: str, images: int) -> None:
    content = [*(image(GRID) for _ in range(images)), "Describe this image."]
    fields = {"stream": True, "stream_options": {"include_usage": True}, "messages": [user(*content)]} | REQUESTS[case]
    slow = streamed(feedback_server.server, fields, feedback_server.keys["alice"])
    assert streamed(server, fields) == slow
    assert streamed(server, fields) == slow, "the second of two equal requests takes the parameters that vLLM completed for the first"


def test_metric_tells_which_way_is_in_use(server: Server, feedback_server: FeedbackServer) -> None:
    own = HTTP.get(f"{server.url}/metrics", timeout=60).text
    key = {"authorization": f"Bearer {feedback_server.keys['alice']}"}
    vllms = HTTP.get(f"{feedback_server.server.url}/metrics", headers=key, timeout=60).text
    for name in ("tokens", "images"):
        assert f'llava_fast_path{{of="{name}"}} 1.0' in own
        assert f'llava_fast_path{{of="{name}"}} 0.0' in vllms


def streamed(server: Server, fields: dict[str, Any], key: str = "none") -> dict[Any, Any]:
    """Return the choices and the usage of a streamed answer."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(timeout=120) as client:
        response = client.post(f"{server.v1}/chat/completions", json={"model": "llava-demo"} | fields, headers=headers)
    assert response.status_code == 200, response.text
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    choices: dict[Any, Any] = {}
    for event in map(json.loads, events):
        if not event["choices"]:
            choices["usage"] = {name: count for name, count in event["usage"].items() if name != "prompt_tokens_details"}
        for choice in event["choices"]:
            found = choices.setdefault(choice["index"], {"text": "", "logprobs": [], "ids": []})
            found["text"] += choice["delta"].get("content") or ""
            found["logprobs"] += [entry["token"] for entry in (choice["logprobs"] or {}).get("content", ())]
            found["ids"] += choice.get("token_ids") or []
            found["finish_reason"] = choice["finish_reason"]
    return choices
