"""Plain completions, and tokens counted before anything is sent."""

import json
from typing import Any

import httpx
import pytest
from helpers.contract import frames
from helpers.errors import refused
from helpers.requests import MODEL, body, image, image_part, user
from openai import OpenAI
from transformers import AutoTokenizer

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID = ("red", "blue", "green", "orange")
IMAGE = data_uri(encode(draw(GRID)))
PATH = "/v1/completions"
HELLO = "USER: Hello ASSISTANT:"
ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."


def prompt(text: Any = HELLO, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": text, "temperature": 0, "max_tokens": 60} | fields


def test_prompt_is_used_unchanged(client: OpenAI) -> None:
    completion = client.completions.create(**prompt())
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason) == (ANSWER, "stop")  # with its leading space: nothing is added to the prompt or removed
    assert completion.usage
    assert completion.usage.prompt_tokens == 9


def test_default_max_tokens_is_16(client: OpenAI) -> None:
    completion = client.completions.create(model=MODEL, prompt=HELLO, temperature=0)
    assert completion.usage
    assert completion.usage.completion_tokens == 16


def test_image_in_a_prompt_is_described(client: OpenAI) -> None:
    asked = prompt("USER: <image>\nDescribe this image. ASSISTANT:")
    completion = client.completions.create(**asked, extra_body={"images": [IMAGE]})
    assert completion.choices[0].text.strip() == describe([GRID])
    assert completion.usage
    assert completion.usage.prompt_tokens_details.image_tokens == 576


def test_two_images_keep_their_order(client: OpenAI) -> None:
    other = ("white", "yellow", "black", "purple")
    asked = prompt("USER: <image>\n<image>\nDescribe these images. ASSISTANT:", max_tokens=200)
    completion = client.completions.create(**asked, extra_body={"images": [IMAGE, data_uri(encode(draw(other)))]})
    assert completion.choices[0].text.strip() == describe([GRID, other])


def test_prompt_of_token_ids_gets_the_same_answer(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": HELLO}).json()["tokens"]
    assert http.post(PATH, json=prompt(tokens)).json()["choices"][0]["text"] == ANSWER


def test_several_prompts_get_their_own_choices(http: httpx.Client) -> None:
    texts = [HELLO, "USER: How are you? ASSISTANT:", HELLO]
    answer = http.post(PATH, json=prompt(texts, n=2, max_tokens=5)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    alone = [http.post(PATH, json=prompt(text, max_tokens=5)).json()["choices"][0]["text"] for text in texts]
    assert [choice["text"] for choice in answer["choices"]] == [text for text in alone for _ in range(2)]
    assert answer["usage"]["completion_tokens"] == 30
    tokens = [http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, tokens))
    assert http.post(PATH, json=prompt(tokens, max_tokens=5)).json()["choices"][1]["text"] == alone[1]


def test_stream_has_the_same_text_logprobs_and_usage(http: httpx.Client) -> None:
    *events, done = frames(http.post(PATH, json=prompt(stream=True, logprobs=1, stream_options={"include_usage": True})).text)
    *chunks, usage = map(json.loads, events)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]] == ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], 9)
    whole = http.post(PATH, json=prompt(logprobs=1)).json()["choices"][0]["logprobs"]
    for name in ("tokens", "text_offset"):
        pieces = [value for chunk in chunks if chunk["choices"][0]["logprobs"] for value in chunk["choices"][0]["logprobs"][name]]
        assert pieces == whole[name]


def test_logprobs_have_offsets_and_alternatives(http: httpx.Client) -> None:
    choice = http.post(PATH, json=prompt(logprobs=2)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset, logprob, top in zip(
        *(logprobs[name] for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert choice["text"][offset:].startswith(token)
        assert len(top) == 2
        assert top[token] == logprob
    llama = http.post(PATH, json=prompt(logprobs=0, structured_outputs={"choice": ["é🦙!"]})).json()["choices"][0]["logprobs"]
    assert llama["tokens"][-2:] == ["bytes:\\x99", "!"]
    assert llama["text_offset"][-1] == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [5, "a"]}, "prompt[1]"),
        ({"prompt": [5, 640]}, "prompt[1]"),
        ({"prompt": "", "add_special_tokens": False}, "prompt"),
        ({"prompt": [[1], [2, 999]]}, "prompt[1][1]"),
        ({"prompt": ["a", "word " * 6000]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": ["a", "b"], "images": [IMAGE]}, "prompt"),
        ({"prompt": "a <image>"}, "images"),
        ({"prompt": "a", "images": [IMAGE]}, "images"),
        ({"prompt": [3]}, "images"),
        ({"prompt": "<image><image>", "images": [IMAGE]}, "images"),
        ({"prompt": "<image>", "images": ["file:///etc/passwd"]}, "images[0]"),
        ({"prompt": "<image>", "images": [{"url": IMAGE}]}, "images[0]"),
        ({"prompt": "<image>", "images": IMAGE}, "images"),
        ({"prompt": "word " * 6000}, "prompt"),
        ({"prompt": [5] * 5000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5000, "max_tokens": 5000}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_prompt_field_is_named_in_the_error(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(http.post(PATH, json=prompt() | fields), 400, param)


def test_bad_prompt_among_several_is_named(http: httpx.Client) -> None:
    refused(http.post(PATH, json=prompt([HELLO, "word " * 6000])), 400, "prompt[1]", "context_length_exceeded")
    refused(http.post(PATH, json=prompt() | {"model": "other"}), 404, "model", "model_not_found")


def test_tokenize_and_detokenize_agree_with_hugging_face(http: httpx.Client) -> None:
    text = "Zażółć 🦙 gęślą jaźń"
    expected = AutoTokenizer.from_pretrained(CHECKPOINT)(text).input_ids
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": text, "return_token_strs": True}).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (expected, len(expected), 4096)
    assert len(answer["token_strs"]) == len(expected)
    assert http.post("/detokenize", json={"tokens": expected}).json() == {"prompt": "<s>" + text}
    without = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert without["tokens"] == expected[1:]


@pytest.mark.parametrize("images", [0, 1, 3])
def test_tokenize_counts_the_tokens_that_the_chat_costs(http: httpx.Client, images: int) -> None:
    """The image is not fetched: its server does not exist."""
    asked = body(*[image(GRID)] * images, "Describe these images. <image>", max_tokens=1)
    usage = http.post("/v1/chat/completions", json=asked).json()["usage"]
    messages = [user(*[image_part("https://nowhere.invalid/x.png")] * images, "Describe these images. <image>")]
    counted = http.post("/tokenize", json={"messages": messages}).json()
    assert counted["count"] == len(counted["tokens"]) == usage["prompt_tokens"]
    assert counted["image_tokens"] == usage["prompt_tokens_details"]["image_tokens"] == 576 * images


@pytest.mark.parametrize(
    ("path", "asked", "status", "param"),
    [
        ("/tokenize", {}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "<image>"}, 400, "images"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("/tokenize", {"messages": [user("x")], "chat_template_kwargs": {"tools": []}}, 400, "chat_template_kwargs.tools"),
        ("/tokenize", {"messages": [], "model": MODEL}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/tokenize", {"messages": [user("x")], "images": ["x"]}, 400, "images"),
        ("/tokenize", {"messages": [user(*[image_part("https://nowhere.invalid/x.png")] * 8)]}, 400, "messages"),
        ("/tokenize", {"prompt": "\N{LLAMA}" * 2000, "return_token_strs": True}, 400, "return_token_strs"),
        ("/tokenize", {"messages": [user("x")], "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/detokenize", {"tokens": [640]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**70]}, 400, "tokens[0]"),
    ],
)
def test_bad_tokenize_field_is_named_in_the_error(http: httpx.Client, path: str, asked: dict[str, Any], status: int, param: str) -> None:
    refused(http.post(path, json=asked), status, param)
