"""SambaStudio's predict API: wrong parameters, bodies, conversations and images get an error that names the field."""

import base64
import json
from typing import Any

import httpx
import pytest
from helpers.sambastudio import (
    GRID,
    NLP_PATH,
    NLP_STREAM,
    OTHER,
    PATH,
    STREAM,
    V2_PATH,
    V2_STREAM,
    about,
    base64_image,
    conversation,
    post,
    predict,
    refused,
    typed,
)
from helpers.server import Server

from llava_gateway.demo.images import describe, draw, encode

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
    ({"temperature": "1.1"}, "temperature"),
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
    ({"image_aspect_ratio": "stretch"}, "image_aspect_ratio"),
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
def test_bad_param_is_named_in_the_error(server: Server, params: dict[str, Any], field: str) -> None:
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
    (PATH, {"instances": [{"prompt": "Hello", "image_content": [base64_image(GRID)] * 1025}]}, "instances[0].image_content"),
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
def test_bad_body_field_is_named_in_the_error(server: Server, path: str, body: dict[str, Any], field: str) -> None:
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
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', ".messages[0].content[0].text"),
        ('{"messages": [{"role": "user", "content": 5}]}', ".messages[0].content"),
        ('{"messages": [{"role": ["user"], "content": "Hello"}]}', ".messages[0].role"),
        (json.dumps({"messages": [5] * 100_000}), ".messages"),
        (json.dumps({"messages": [5]}), ".messages[0]"),
        (conversation(*[("user", "a")] * 2049), ".messages"),
        (conversation(("user", "Hello"), tools=[{"type": "function"}]), ".tools"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_conversation_field_is_named_in_the_error(server: Server, prompt: str, field: str) -> None:
    refused(post(server, PATH, {"instances": [prompt], "params": typed(process_prompt=True)}), 400, "instances[0]" + field)
    asked = {"items": [{"value": {"prompt": prompt}}], "params": {"process_prompt": True}}
    refused(post(server, V2_STREAM, asked), 400, "items[0].value.prompt" + field)


BROKEN = {
    "no base64": "!!!!",
    "no image": base64.b64encode(b"hello, world").decode(),
    "half an image": base64_image(GRID)[:400],
    "a path": "/etc/passwd",
    "too thin": base64.b64encode(encode(draw(GRID, (1, 4000)))).decode(),
    "too many pixels": base64.b64encode(encode(draw(GRID, (9000, 6000)))).decode(),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_image_is_named_in_the_error(server: Server, broken: str) -> None:
    instance = {"prompt": "Describe this image.", "image_content": broken}
    refused(post(server, PATH, {"instances": [about(GRID), instance]}), 400, "instances[1].image_content")
    refused(
        post(server, STREAM, {"instance": instance | {"image_content": [base64_image(GRID), broken]}}), 400, "instance.image_content[1]"
    )
    refused(post(server, V2_PATH, {"items": [{"value": instance}]}), 400, "items[0].value.image_content")


def test_malformed_request_is_refused_on_each_path(server: Server) -> None:
    json_type = {"content-type": "application/json"}
    for path in (PATH, STREAM, V2_PATH, V2_STREAM, NLP_PATH, NLP_STREAM):
        refused(httpx.post(server.url + path, content=b"{", headers=json_type, timeout=60), 400)
        refused(httpx.post(server.url + path, content=b"[]", headers=json_type, timeout=60), 400)
        refused(httpx.post(server.url + path, content=b"{}", headers={"content-type": "text/plain"}, timeout=60), 415)
        refused(httpx.get(server.url + path, timeout=60), 405)
    refused(httpx.post(server.url + PATH, content=b" " * (9 << 20), headers=json_type, timeout=60), 413)


def test_server_answers_after_all_refusals(server: Server) -> None:
    (prediction,) = predict(server, about(OTHER))
    assert prediction["completion"] == describe([OTHER])
