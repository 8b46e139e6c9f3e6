"""Bad requests get a 4xx in OpenAI's shape that names the field, and the next request works."""

import socket
from typing import Any

import httpx
import orjson
import pytest
from helpers.errors import refused
from helpers.requests import MODEL, body, image, image_part, user
from helpers.server import Server

from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID = ("red", "blue", "green", "orange")
CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5.5"}, "max_tokens"),
    ({"max_tokens": "five"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"temperature": "NaN"}, "temperature"),
    ({"temperature": ""}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1_000_000_000}, "n"),
    ({"n": True}, "n"),
    ({"seed": 1e30}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": float(2**53)}, "seed"),
    ({"seed": True}, "seed"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": "3"}, "frequency_penalty"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"model": 5}, "model"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2.5}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": -1}, "repetition_penalty"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"stop": "x" * 10_001}, "stop"),
    ({"bad_words": ["x" * 101]}, "bad_words[0]"),
    ({"logit_bias": {"05": 1}}, "logit_bias"),
    ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
    ({"structured_outputs": {"choice": ["a"]}, "min_tokens": 3}, "min_tokens"),
    ({"structured_outputs": {"~list": 1}}, "structured_outputs.~list"),
    ({"min_tokens": 5}, "min_tokens"),
    ({"min_tokens": 1.5}, "min_tokens"),
    ({"stop_token_ids": [1, 640]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": "1"}, "stop_token_ids"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template": ["llava-hf"]}, "chat_template"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"messages": [user({"type": "image"})]}, "messages[0].content[0]"),
    ({"messages": [user({"type": "image", "url": "x", "base64": "x"})]}, "messages[0].content[0]"),
    ({"messages": [user({"type": "image", "base64": "no image"})]}, "messages[0].content[0].base64"),
    ({"messages": [user({"type": "image", "path": "/etc/passwd"})]}, "messages[0].content[0]"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [1, 9999]}, "allowed_token_ids[1]"),
    ({"allowed_token_ids": [True]}, "allowed_token_ids[0]"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": [" "]}, "bad_words"),
    ({"ignore_eos": "no"}, "ignore_eos"),
    ({"skip_special_tokens": 0}, "skip_special_tokens"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"echo": True}, "echo"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"priority": 1}, "priority"),
    ({"request_id": "mine"}, "request_id"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"function_call": "auto"}, "function_call"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": "1"}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 1.5}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1.5": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"640": 1}}, "logit_bias.640"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "one"}}, "logit_bias.5"),
    ({"chat_template_kwargs": {"chat_template": "{{ messages }}"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": ["text"]}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"json": "no json"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": 1}}, "stream_options.continuous_usage_stats"),
    ({"mm_processor_kwargs": {"size": 9}}, "mm_processor_kwargs"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "x"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/"}]}]}, "messages[0].content[0].image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]}, URL),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]}, URL),
    ({"messages": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "messages[0].content[0].file_id"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
    (
        {"messages": [user("hi"), {"role": "assistant", "content": [image(GRID)]}], "continue_final_message": True},
        "messages",
    ),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_field_is_named_in_the_error(http: httpx.Client, fields: dict[str, Any], param: str, stream: bool) -> None:
    request = body("Hello", max_tokens=4) | ({"stream": True} if stream and "stream_options" not in fields else {}) | fields
    refused(http.post(CHAT, json=request), 400, param)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("depth", [70, 130, 400])
def test_deeply_nested_schema_is_refused(http: httpx.Client, depth: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(depth)}}
    refused(http.post(CHAT, json=body("Hello", response_format=form)), 400, "response_format.json_schema.schema")
    refused(http.post(CHAT, json=body("Hello", structured_outputs={"json": nested(depth)})), 400, "structured_outputs.json")


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (CHAT, {"messages": [{"role": "assistant"}] * 200_000}, None),
        (CHAT, {"messages": [{"role": "assistant"}] * 70_000}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 45_000}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100}] * 450}, "messages"),
        ("/tokenize", {"messages": [1] * 300_000}, "messages"),
        ("/detokenize", {"tokens": ["a"] * 1_000_000}, None),
        ("/detokenize", {"tokens": ["a"] * 590_000}, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 590_000}, "tokens"),
        ("/v1/completions", {"prompt": [1] * 590_000}, "prompt"),
        (CHAT, {"messages": [user("x")], "allowed_token_ids": [1] * 590_000}, "allowed_token_ids"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_very_long_lists_are_refused_within_seconds(http: httpx.Client, path: str, asked: dict[str, Any], param: str | None) -> None:
    """The list is refused before its elements are checked, which would take minutes."""
    refused(http.post(path, json={"model": MODEL} | asked, timeout=30), 400, param)


def test_error_does_not_repeat_a_long_value(http: httpx.Client) -> None:
    for fields in (
        {"model": "x" * 1_000_000},
        {"structured_outputs": {"x" * 1_000_000: 1}},
        {"messages": [{"role": "user", "x" * 1_000_000: 1}]},
    ):
        assert len(http.post(CHAT, json=body("Hello") | fields).content) < 1000


def test_non_http_request_gets_a_json_error(server: Server) -> None:
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, content = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: " in head
    assert orjson.loads(content)["error"]["type"] == "invalid_request_error"


def test_missing_field_is_named_in_the_error(http: httpx.Client) -> None:
    refused(http.post(CHAT, json={"model": MODEL}), 400, "messages")


def test_unknown_model_gets_404(http: httpx.Client) -> None:
    refused(http.post(CHAT, json=body("hi", model="gpt-5")), 404, "model", "model_not_found")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\\ud800"}',
    ],
    ids=lambda value: repr(value[:20]),
)
def test_body_that_is_not_a_json_object_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert refused(answer, 400, None)["type"] == "invalid_request_error"


def test_wrong_media_type_method_and_path_are_refused(http: httpx.Client) -> None:
    text = orjson.dumps(body("hi"))
    refused(http.post(CHAT, content=text, headers={"content-type": "text/plain"}), 415, None)
    refused(http.post(CHAT, content=text, headers={"content-type": "application/json", "content-encoding": "gzip"}), 415, None)
    refused(http.get(CHAT), 405, None)
    refused(http.post("/v1/models"), 405, None)
    refused(http.get(f"{CHAT}/"), 405, None)
    for path in ("/v1", "/v1/", "/v1/models//", "/v1/chat/completions/x/", "/../etc/passwd", "/docs//"):
        refused(http.get(path), 404, "model" if path == "/v1/models//" else None)


def test_large_body_is_refused_with_and_without_a_declared_length(http: httpx.Client) -> None:
    refused(http.post(CHAT, content=b" " * (9 << 20), headers={"content-type": "application/json"}), 413, None)

    def endless() -> Any:
        for _ in range(12):
            yield b" " * (1 << 20)

    refused(http.post(CHAT, content=endless(), headers={"content-type": "application/json"}), 413, None)


IMAGE = encode(draw(GRID))


def test_request_beyond_the_context_is_refused(http: httpx.Client) -> None:
    error = refused(http.post(CHAT, json=body("Hello", min_tokens=5000, max_tokens=6000)), 400, "messages", "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 4096 tokens. However, you requested 50")
    refused(http.post(CHAT, json=body("word " * 5000, max_tokens=1)), 400, "messages", "context_length_exceeded")
    refused(http.post(CHAT, json=body(*[image(GRID)] * 8, "hi")), 400, "messages", "context_length_exceeded")
    refused(http.post(CHAT, json=body(*[image(GRID)] * 7, "hi", min_tokens=100)), 400, "messages", "context_length_exceeded")


def test_harmless_deviations_are_accepted(http: httpx.Client) -> None:
    uri = data_uri(IMAGE)
    lines = "data:image/jpeg;base64," + "\r\n".join(uri.partition(",")[2][i : i + 76] for i in range(0, len(uri), 76))
    urlsafe = uri.partition(",")[0] + "," + uri.partition(",")[2].replace("+", "-").replace("/", "_")
    for url in (uri.rstrip("="), uri.replace("data:image/png", "DATA:text/html"), lines, urlsafe):
        answer = http.post(CHAT, json=body(image_part(url), "Describe this image."))
        assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])
    ignored = {"user": "me", "store": False, "metadata": {}, "tools": [], "tool_choice": "none", "brand_new_field": {"a": 1}}
    answer = http.post(CHAT, json=body(image(GRID) | {"uuid": "x" * 100}, "Describe this image.", **ignored))
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "0", "max_tokens": "200", "n": 1.0, "stream": "false", "stop": [], "logit_bias": {"5": "0"}},
        {"temperature": 1.5, "top_p": 0, "top_logprobs": 0, "logprobs": False},
        {"chat_template_kwargs": {"enable_thinking": False}, "guided_decoding_backend": "xgrammar"},
        {"stop": [f"stop {number}" for number in range(64)], "max_tokens": 100_000},
        {"model": None},
        {"model": ""},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_harmless_habit_does_not_change_the_answer(http: httpx.Client, fields: dict[str, Any]) -> None:
    answer = http.post(CHAT, json=body(image(GRID), "Describe this image.") | fields).json()
    assert answer["choices"][0]["message"]["content"] == describe([GRID])
    assert answer["model"] == MODEL


@pytest.mark.parametrize("content", ["", [], None])
def test_empty_message_is_answered(http: httpx.Client, content: Any) -> None:
    answer = http.post(CHAT, json=body(messages=[{"role": "user", "content": content}], max_tokens=5))
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_answer_beyond_the_context_ends_there(http: httpx.Client) -> None:
    asked = body("word " * 4050, max_tokens=1000, ignore_eos=True)
    answer = http.post(CHAT, json=asked).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 4096


def test_server_answers_after_all_refusals(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=body(image(GRID), "Describe this image."))
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])
