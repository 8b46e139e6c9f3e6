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


@pytest.mark.parametrize("logprobs", [0, 2])
def test_sampled_token_is_always_among_the_likeliest(http: httpx.Client, logprobs: int) -> None:
    fields = {"temperature": 2, "seed": 3, "ignore_eos": True, "logprobs": logprobs}
    found = http.post(PATH, json=prompt(**fields)).json()["choices"][0]["logprobs"]
    unlikely = 0
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob
        assert len(top) in (logprobs, logprobs + 1)
        unlikely += len(top) == logprobs + 1
    assert unlikely


def test_score_of_an_answer_equals_the_logprobs_of_its_generation(http: httpx.Client) -> None:
    """Also in a stream, and although the prefix cache has the prompt."""
    answer = http.post(PATH, json=prompt(logprobs=3, return_token_ids=True)).json()["choices"][0]
    tokens, generated = answer["token_ids"], answer["logprobs"]
    assert len(generated["tokens"]) == len(tokens)  # the token that ended the answer is among them
    scored = prompt([*answer["prompt_token_ids"], *tokens], max_tokens=0, logprobs=3, echo=True, prompt_logprobs=1)
    completion = http.post(PATH, json=scored).json()
    (choice,) = completion["choices"]
    assert completion["usage"]["completion_tokens"] == completion["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert (choice["text"], choice["finish_reason"]) == ("<s>" + HELLO + ANSWER + "</s>", "length")
    assert choice["logprobs"]["tokens"][-len(tokens) :] == generated["tokens"]
    assert choice["logprobs"]["token_logprobs"][-len(tokens) :] == pytest.approx(generated["token_logprobs"], abs=0.01)
    assert (choice["logprobs"]["token_logprobs"][0], choice["logprobs"]["top_logprobs"][0]) == (None, None)
    assert choice["prompt_logprobs"][0] is None
    for token, position, logprob in zip(tokens, choice["prompt_logprobs"][-len(tokens) :], generated["token_logprobs"], strict=True):
        assert position[str(token)]["logprob"] == pytest.approx(logprob, abs=0.01)
        assert position[str(token)]["rank"] == 1
        assert len(position) == 1
    del scored["prompt_logprobs"]
    *events, _ = frames(http.post(PATH, json=scored | {"stream": True}).text)
    pieces = [json.loads(event)["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    for name, values in choice["logprobs"].items():
        streamed = [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]]
        assert streamed == values if name in ("tokens", "text_offset") else len(streamed) == len(values)


def test_prompt_with_an_image_is_scored(http: httpx.Client) -> None:
    text = "USER: <image>\nDescribe this image. ASSISTANT:"
    asked = prompt(text, images=[IMAGE], logprobs=1)
    answer = http.post(PATH, json=asked).json()["choices"][0]
    score = http.post(PATH, json=asked | {"prompt": text + answer["text"], "max_tokens": 0, "echo": True}).json()["choices"][0]
    count = len(answer["logprobs"]["tokens"])
    assert score["text"] == text + answer["text"]
    assert score["logprobs"]["tokens"][-count:] == answer["logprobs"]["tokens"]
    assert score["logprobs"]["token_logprobs"][-count:] == pytest.approx(answer["logprobs"]["token_logprobs"], abs=0.01)
    assert score["logprobs"]["text_offset"][-count:] == [len(text) + offset for offset in answer["logprobs"]["text_offset"]]
    assert score["logprobs"]["tokens"].count("<image>") == 576


def test_lm_eval_gets_the_scores_of_continuations(http: httpx.Client) -> None:
    """It sends token ids, asks for one more token, and cuts that token and the context off."""
    contexts = [http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in (HELLO, "USER: How are you? ASSISTANT:")]
    right = http.post("/tokenize", json={"prompt": ANSWER, "add_special_tokens": False}).json()["tokens"]
    wrong = right[::-1]
    prompts = [[*context, *continuation] for context in contexts for continuation in (right, wrong)]
    asked = {"model": MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = sorted(http.post(PATH, json=asked).json()["choices"], key=lambda choice: choice["index"])
    results = []
    for choice, asked_prompt in zip(choices, prompts, strict=True):
        start = len(asked_prompt) - len(right)
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(asked_prompt) + 1
        tokens, tops = logprobs["tokens"][start:-1], logprobs["top_logprobs"][start:-1]
        greedy = all(token == max(top, key=top.get) for token, top in zip(tokens, tops, strict=True))
        results.append((sum(logprobs["token_logprobs"][start:-1]), greedy))
    assert results[0][1]
    assert not results[1][1]
    assert results[0][0] > -1 > -50 > results[1][0]


def test_echo_without_logprobs_begins_with_the_prompt(client: OpenAI) -> None:
    whole = client.completions.create(**prompt(n=2), echo=True)
    assert [choice.text for choice in whole.choices] == [HELLO + ANSWER] * 2
    texts = ["", ""]
    for chunk in client.completions.create(**prompt(n=2), echo=True, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [HELLO + ANSWER] * 2


def test_several_prompts_stream_by_index(client: OpenAI) -> None:
    texts = [HELLO, "USER: How are you? ASSISTANT:", "red blue"]
    asked = prompt(texts, n=2, max_tokens=8, temperature=1, seed=5)
    whole = client.completions.create(**asked)
    streamed = dict.fromkeys(range(6), "")
    usage = None
    order = []
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            order.append(choice.index)
            streamed[choice.index] += choice.text
    assert list(streamed.values()) == [choice.text for choice in whole.choices]
    assert order != sorted(order)  # interleaved
    assert usage
    assert whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_bad_prompt_of_a_streamed_list_is_refused_before_the_stream(http: httpx.Client) -> None:
    refused(http.post(PATH, json=prompt([HELLO, "word " * 6000], stream=True)), 400, "prompt[1]", "context_length_exceeded")
    refused(http.post(PATH, json=prompt([HELLO, [5, 9999]], stream=True)), 400, "prompt[1]")
    refused(http.post(PATH, json=prompt([HELLO] * 2, structured_outputs={"regex": "("}, stream=True)), 400, "structured_outputs.regex")


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_are_returned(http: httpx.Client, stream: bool) -> None:
    expected = http.post("/tokenize", json={"prompt": HELLO}).json()["tokens"]
    asked = prompt(return_token_ids=True, return_tokens_as_token_ids=True, logprobs=1, stream=stream)
    if stream:
        *events, _ = frames(http.post(PATH, json=asked).text)
        choices = [json.loads(event)["choices"][0] for event in events]
    else:
        choices = http.post(PATH, json=asked).json()["choices"]
    assert choices[0]["prompt_token_ids"] == expected
    token_ids = [token for choice in choices for token in choice.get("token_ids", [])]
    assert http.post("/detokenize", json={"tokens": token_ids}).json()["prompt"].strip() == ANSWER.strip() + "</s>"
    logprobs = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert [token for each in logprobs for token in each["tokens"]] == [f"token_id:{token}" for token in token_ids]
    assert all(token.startswith("token_id:") for each in logprobs for top in each["top_logprobs"] for token in top)


@pytest.mark.parametrize("images", [0, 1])
def test_prompts_of_different_salts_share_no_cache(http: httpx.Client, images: int) -> None:
    text = "<image>" * images + "cyan magenta ivory " * 30

    def cached(salt: str | None) -> int:
        asked = prompt(text, images=[IMAGE] * images, max_tokens=1, cache_salt=salt)
        return int(http.post(PATH, json=asked).json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("@first/") == 0
    assert cached("@first/") > 0
    assert cached("second") == 0
    assert cached(None) == 0
    assert cached(None) > 0


def test_128_choices_are_answered(http: httpx.Client) -> None:
    answer = http.post(PATH, json=prompt(n=128, temperature=1, max_tokens=2, ignore_eos=True)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(128))
    assert answer["usage"]["completion_tokens"] == 256


def test_stop_reason_and_fingerprint_are_in_every_answer(http: httpx.Client) -> None:
    cases: list[tuple[dict[str, Any], str | None]] = [({}, None), ({"stop": "image"}, "image"), ({"max_tokens": 1}, None)]
    for fields, reason in cases:
        answer = http.post(PATH, json=prompt(**fields)).json()
        assert answer["choices"][0]["stop_reason"] == reason
        *events, _ = frames(http.post(PATH, json=prompt(stream=True, **fields)).text)
        chunks = [json.loads(event) for event in events]
        assert {chunk["system_fingerprint"] for chunk in chunks} == {answer["system_fingerprint"]}
        assert chunks[-1]["choices"][0]["stop_reason"] == reason
    stop = http.post(PATH, json=prompt(return_token_ids=True)).json()["choices"][0]["token_ids"][2]
    assert http.post(PATH, json=prompt(stop_token_ids=[stop])).json()["choices"][0]["stop_reason"] == stop


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
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 5000, "max_tokens": 5000}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 129}, "cache_salt"),
        ({"n": 128, "max_tokens": 513}, "n"),
        ({"n": 128, "max_tokens": 500, "logprobs": 20, "prompt": [5] * 3000, "echo": True}, "max_tokens"),
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
