"""SambaStudio's predict API: what a request with images, conversations or parameters returns."""

import base64
import json
import time
from typing import Any

import httpx
import pytest
from helpers.requests import image, user
from helpers.sambastudio import (
    GRID,
    NLP_PATH,
    NO_IMAGE,
    OTHER,
    PATH,
    PREDICTION,
    V2_PATH,
    about,
    base64_image,
    conversation,
    post,
    predict,
    refused,
    typed,
)
from helpers.server import Server

from llava_gateway.demo.images import COLORS, Grid, describe, draw, encode
from llava_gateway.prompts.templates import CURIOUS_HUMAN


def prompt_tokens(server: Server, prompt: str, *grids: Grid) -> int:
    """Return the number of tokens that OpenAI's API counts for the same prompt."""
    messages = [{"role": "system", "content": CURIOUS_HUMAN}, user(*map(image, grids), prompt)]
    count: int = httpx.post(f"{server.url}/tokenize", json={"messages": messages, "chat_template": "llava-hf"}, timeout=60).json()["count"]
    return count


def test_documented_request_gets_the_documented_response(server: Server) -> None:
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
    text = prompt_tokens(server, "Describe this image.", GRID) - 576
    assert total == text + 576 + len(tokens) + 1  # the end of the text is a token, too


def test_instance_may_be_an_object_or_a_string(server: Server) -> None:
    for instance in ("Hello", {"prompt": "Hello"}, {"prompt": "Hello", "image_content": None}):
        (prediction,) = predict(server, instance)
        assert prediction["completion"] == NO_IMAGE
        assert prediction["total_tokens_count"] == prompt_tokens(server, "Hello") + len(prediction["tokens"]) + 1


def test_model_does_not_invent_a_missing_image(server: Server) -> None:
    for prompt in ("Describe this image.", "<image>\nDescribe this image."):
        (prediction,) = predict(server, {"prompt": prompt})
        assert not any(color in prediction["completion"] for color in COLORS)


def test_two_images_keep_their_order(server: Server) -> None:
    (prediction,) = predict(server, about(GRID, OTHER, prompt="Describe these images."))
    assert prediction["completion"] == describe([GRID, OTHER])
    assert prediction["prompt"].count("<image>") == 2
    completion = len(prediction["tokens"]) + 1
    assert prediction["total_tokens_count"] == prompt_tokens(server, "Describe these images.", GRID, OTHER) + completion


def test_image_is_accepted_in_each_form_of_base64(server: Server) -> None:
    data = encode(draw(GRID), "JPEG", quality=95)
    for content in (base64.b64encode(data).decode(), base64.encodebytes(data).decode(), "data:image/png;base64," + base64_image(GRID)):
        (prediction,) = predict(server, {"prompt": "What color is the bottom right?", "image_content": content})
        assert prediction["completion"] == "Orange."


def test_batch_keeps_its_order(server: Server) -> None:
    colors = ("red", "blue", "green", "white", "black")
    instances: list[Any] = [about((color, "red", "blue", "green"), prompt="What color is the top left?") for color in colors]
    instances.insert(2, "Hello")
    completions = [prediction["completion"] for prediction in predict(server, *instances)]
    assert completions == ["Red.", "Blue.", NO_IMAGE, "Green.", "White.", "Black."]


@pytest.mark.parametrize("path", [PATH, V2_PATH, NLP_PATH])
def test_batch_of_128_is_accepted_and_129_refused(server: Server, path: str) -> None:
    holder, answers = {PATH: ("instances", "predictions"), V2_PATH: ("items", "items"), NLP_PATH: ("inputs", "data")}[path]
    prompts: list[Any] = ["Hello"] * 128
    batch: list[Any] = [{"value": prompt} for prompt in prompts] if path == V2_PATH else prompts
    asked = {holder: batch, "params": {"max_tokens_to_generate": 1}}
    assert len(post(server, path, asked).json()[answers]) == 128
    refused(post(server, path, asked | {holder: batch + batch[:1]}), 400, holder)


def test_typed_and_plain_params_mean_the_same(server: Server) -> None:
    """Both forms are accepted on both paths, also with Python's `str` of the values."""
    plain = {"max_tokens_to_generate": 4, "do_sample": False, "top_p": 0.5, "stop_sequences": ["zebra"]}
    written = {name: {"type": "whatever", "value": value} for name, value in plain.items()}
    for params in (plain, typed(**plain), written, plain | {"temperature": None, "brand_new": {"type": "int", "value": "1"}}):
        prediction = post(server, PATH, {"instances": ["Hello"], "params": params}).json()["predictions"][0]
        item = post(server, V2_PATH, {"items": [{"value": "Hello"}], "params": params}).json()["items"][0]["value"]
        assert prediction == item
        assert (len(prediction["tokens"]), prediction["stop_reason"]) == (4, "max_len_reached")


def test_answer_without_params_is_greedy_and_limited_to_100_tokens(server: Server) -> None:
    asked = {"instances": [about(*[GRID] * 4, prompt="Describe these images.")] * 2}
    first, second = post(server, PATH, asked).json()["predictions"]
    assert len(first["tokens"]) == 100
    assert first["stop_reason"] == "max_len_reached"
    assert first["completion"] == second["completion"]
    assert describe([GRID] * 4).startswith(first["completion"])


def test_answer_is_sampled_only_with_do_sample(server: Server) -> None:
    hot = {"temperature": 1.0, "top_k": 1000, "max_tokens_to_generate": 20}
    prompts = ["What color is the top left?"] * 8  # without an image, the model is not sure what to say
    drawn = {prediction["completion"] for prediction in predict(server, *prompts, do_sample=True, **hot)}
    greedy = {prediction["completion"] for prediction in predict(server, *prompts, do_sample=False, **hot)}
    assert len(drawn) > 1
    assert len(greedy) == 1
    assert {prediction["completion"] for prediction in predict(server, *prompts, **hot | {"top_k": 1}, do_sample=True)} == greedy


@pytest.mark.parametrize("value", ["color", '"zebra","color"', '["color"]', "['zebra', 'color']"])
def test_stop_sequence_ends_the_answer_in_each_spelling(server: Server, value: str) -> None:
    (prediction,) = predict(server, "Hello", stop_sequences="image. I")
    assert (prediction["completion"], prediction["stop_reason"]) == ("I see no ", "stop_sequence")
    assert "".join(prediction["tokens"]).startswith("I see no image. I")
    (prediction,) = predict(server, "Hello", stop_sequences=value.replace("color", "small"))
    assert (prediction["completion"], prediction["stop_reason"]) == ("I see no image. I am a ", "stop_sequence")


def test_preprocessing_llava_sn_uses_sambanovas_template(server: Server) -> None:
    (prediction,) = predict(server, about(GRID), preprocessing="llava-sn")
    assert prediction["prompt"] == f"{CURIOUS_HUMAN}\n\n### Human: Describe this image.\n<image>\n\n###"
    assert "###" not in prediction["completion"]


def test_logprobs_have_offsets_and_sorted_alternatives(server: Server) -> None:
    (prediction,) = predict(server, about(GRID), top_logprobs=3)
    offsets, tops = prediction["logprobs"]["text_offset"], prediction["logprobs"]["top_logprobs"]
    assert "".join(prediction["tokens"]) == prediction["completion"] == describe([GRID])
    for token, offset, top in zip(prediction["tokens"], offsets, tops, strict=True):
        assert prediction["completion"][offset:].startswith(token)
        assert next(iter(top)) == token  # the most likely token, as the answer is greedy
        assert 1 <= len(top) <= 3
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert top[token] <= 0


def test_conversation_in_a_prompt_is_read_only_with_process_prompt(server: Server) -> None:
    turns = (("user", "Describe this image."), ("assistant", describe([GRID])), ("user", "What color is the bottom right?"))
    instance = {"prompt": conversation(*turns), "image_content": base64_image(GRID)}
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


def test_image_in_a_message_of_a_conversation_is_described(server: Server) -> None:
    text = json.dumps({"messages": [user("Describe this image.", image(GRID))]})
    (prediction,) = predict(server, text, process_prompt=True)
    assert prediction["completion"] == describe([GRID])


def test_v2_items_keep_their_ids(server: Server) -> None:
    asked: dict[str, Any] = {
        "items": [{"id": "item0", "value": about(GRID)}, {"value": "Hello"}, {"id": "c", "value": conversation(("user", "Hello"))}],
        "params": {"max_tokens_to_generate": 200, "do_sample": False},
    }
    items = post(server, V2_PATH, asked).json()["items"]
    assert [item["id"] for item in items] == ["item0", "1", "c"]
    assert all(set(item) == {"id", "value"} and set(item["value"]) == PREDICTION for item in items)
    assert [item["value"]["completion"] for item in items[:2]] == [describe([GRID]), NO_IMAGE]
    asked = {"items": asked["items"][2:], "params": {"process_prompt": True}}
    assert post(server, V2_PATH, asked).json()["items"][0]["value"]["completion"] == NO_IMAGE


def test_nlp_inputs_are_answered(server: Server) -> None:
    data = post(server, NLP_PATH, {"inputs": ["Hello", "Describe this image."], "params": typed(max_tokens_to_generate=50)}).json()["data"]
    assert [prediction["completion"] for prediction in data] == [NO_IMAGE, NO_IMAGE]
    assert set(data[0]) == PREDICTION
