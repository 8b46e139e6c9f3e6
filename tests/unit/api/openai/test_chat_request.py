"""OpenAI's request, field by field, without a server."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.documentation import OPENAI_BODIES
from helpers.json_values import JSON
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import MODEL_DEFAULTS, ChatRequest, ImageUrl, Message, SamplingParams, StructuredOutput, Text

FIELDS = (
    "model",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "role",
    "content",
    "type",
)


def chat(**fields: Any) -> ChatRequest:
    return to_chat(ChatCompletionRequest.parse({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields))


def test_empty_request_has_the_defaults() -> None:
    sampling = SamplingParams(lower_max_tokens_to_fit=True, unset=frozenset(MODEL_DEFAULTS))
    assert chat() == ChatRequest(model="m", messages=(Message("user", (Text("hi"),)),), sampling=sampling)


def test_every_field_reaches_the_core() -> None:
    asked = chat(
        max_tokens=5, max_completion_tokens=6, temperature=0, top_p=0.5, n=2, stop="x", seed=-1, presence_penalty=-2, stream=True,
        frequency_penalty=2, logit_bias={"7": -100}, top_k=-1, min_p=0.5, repetition_penalty=2, stop_token_ids=[1],
        skip_special_tokens=False, spaces_between_special_tokens=False, include_stop_str_in_output=True,
        bad_words=["a"], allowed_token_ids=[2], logprobs=True, top_logprobs=4, structured_outputs={"choice": ["a", "b"]},
    )  # fmt: skip
    assert asked.stream
    assert asked.sampling == SamplingParams(
        max_tokens=6, lower_max_tokens_to_fit=True, temperature=0.0, top_p=0.5, n=2, stop=("x",), seed=-1, presence_penalty=-2.0,
        frequency_penalty=2.0, logit_bias={7: -100.0}, top_k=0, min_p=0.5, repetition_penalty=2.0, stop_token_ids=(1,),
        skip_special_tokens=False, spaces_between_special_tokens=False, include_stop_str_in_output=True,
        bad_words=("a",), allowed_token_ids=(2,), logprobs=4,
        structured_output=StructuredOutput("choice", ("a", "b"), "structured_outputs.choice"),
    )  # fmt: skip


def test_length_fields_reach_the_core() -> None:
    assert chat(min_tokens=3, ignore_eos=True).sampling == dataclasses.replace(chat().sampling, min_tokens=3, ignore_eos=True)


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"stop": []}, {}),
        ({"stop": [str(number) for number in range(64)]}, {"stop": tuple(str(number) for number in range(64))}),
        ({"top_p": 0}, {"temperature": 0.0}),
        ({"top_p": 0, "temperature": 1.5}, {"temperature": 0.0}),
        ({"top_logprobs": 0}, {}),
        ({"top_logprobs": 0, "logprobs": False}, {}),
        ({"temperature": "0.5", "max_tokens": 8.0, "seed": "7"}, {"temperature": 0.5, "max_tokens": 8, "seed": 7}),
        ({"stream_options": {}}, {}),
        ({"stream_options": {"include_usage": False}}, {}),
        ({"guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": None}, {}),
    ],
    ids=str,
)
def test_harmless_habit_has_its_senders_meaning(fields: dict[str, Any], meant: dict[str, Any]) -> None:
    assert chat(**fields).sampling == dataclasses.replace(
        chat().sampling, unset=frozenset(MODEL_DEFAULTS) - meant.keys() - fields.keys(), **meant
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["x"] * 65}, "stop"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"chat_template_kwargs": {str(number): 1 for number in range(101)}}, "chat_template_kwargs"),
        ({"logit_bias": {str(number): "x" for number in range(5000)}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_field_that_would_change_the_answer_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


def test_nulls_are_defaults() -> None:
    names = set(ChatCompletionRequest.model_fields) | set(ChatCompletionRequest.refused) | set(ChatCompletionRequest.ignored)
    assert chat(**dict.fromkeys(names - {"model", "messages"})) == chat()


def test_refused_field_that_asks_for_nothing_is_accepted() -> None:
    for name, field in ChatCompletionRequest.refused.items():
        for value in field.allowed_values:
            assert chat(**{name: value}) == chat()
        with pytest.raises(InvalidRequest) as refused:
            chat(**{name: ["something"]})
        assert refused.value.param == name


def test_ignored_field_may_have_any_value() -> None:
    for name in (*ChatCompletionRequest.ignored, "a field of tomorrow"):
        assert chat(**{name: {"x": [1]}}) == chat()


def test_roles_and_parts_reach_the_core() -> None:
    messages = [
        {"role": "developer", "content": "be brief", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u", "detail": "high"}}]},
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
    ]
    assert chat(messages=messages).messages == (
        Message("system", (Text("be brief"),)),
        Message("user", (Text("a"), ImageUrl("u", "messages[1].content[1].image_url.url"))),
        Message("assistant", ()),
        Message("user", (Text("b"),)),
    )


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=8))
def test_any_object_is_accepted_or_a_400(body: dict[str, Any]) -> None:
    try:
        to_chat(ChatCompletionRequest.parse(body))
    except InvalidRequest as error:
        assert error.param
        assert "~" not in error.param or any("~" in key for key in body)


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["user", "text", "image_url"]), max_size=4), min_size=1))
def test_any_messages_are_accepted_or_a_400(messages: list[Any]) -> None:
    try:
        chat(messages=messages)
    except InvalidRequest as error:
        assert (error.param or "").startswith("messages[")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e400])
def test_infinite_or_nan_number_is_a_400(value: float) -> None:
    with pytest.raises(InvalidRequest):
        chat(temperature=value)


def lists(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "array":
            yield schema
        for inner in schema.values():
            yield from lists(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from lists(inner)


def test_every_list_is_bounded() -> None:
    """A body of some megabytes holds a million of anything."""
    found = [schema for body in OPENAI_BODIES for schema in lists(body.model_json_schema())]
    assert len(found) > 10
    for schema in found:
        assert "maxItems" in schema, schema
