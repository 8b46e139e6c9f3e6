"""`/v1/responses` over HTTP: the fields, the events and the items, with an engine that says what the test gives it."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from helpers.requests import MODEL
from helpers.responses import text_of
from helpers.scripted_engine import CALL, RENDERS_TOOLS, SCHEMA
from helpers.served_responses import PATH, PNG, TOOLS, FailingEngine, RecordingEngine, ask, create, message, refusal, served, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.api.openai.responses.request import CreateResponse


def test_whole_and_streamed_response_have_the_same_fields() -> None:
    response = ask(RecordingEngine("Hel", "lo"), metadata={"a": "b"}, user="me", max_output_tokens=7, temperature=0)
    assert text_of(response) == "Hello"
    assert (response["status"], response["model"], response["metadata"], response["user"]) == ("completed", MODEL, {"a": "b"}, "me")
    assert (response["max_output_tokens"], response["temperature"], response["top_p"]) == (7, 0, 1)
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + 2
    assert response["completed_at"] >= response["created_at"]


def test_answer_that_is_cut_off_is_incomplete() -> None:
    response = ask(RecordingEngine("Hello", reason="length"))
    assert (response["status"], response["output"][0]["status"]) == ("incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


def test_empty_answer_is_an_empty_message() -> None:
    response = ask(RecordingEngine())
    assert [item["type"] for item in response["output"]] == ["message"]
    assert text_of(response) == ""


def test_stream_has_openais_events_in_order() -> None:
    async def run() -> list[dict[str, Any]]:
        async with served(RecordingEngine("Hello")) as http:
            return await stream(http)

    assert [event["type"] for event in asyncio.run(run())] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_stream_that_fails_ends_with_error_and_failed_events() -> None:
    async def run() -> list[dict[str, Any]]:
        async with served(FailingEngine()) as http:
            events = await stream(http)
            assert (await http.get(f"{PATH}/{events[0]['response']['id']}")).status_code == 404
            return events

    *_, error, failed = asyncio.run(run())
    assert (error["type"], error["code"]) == ("error", "engine_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize("fields", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}], ids=str)
def test_log_probabilities_are_those_of_all_tokens(fields: dict[str, Any]) -> None:
    response = ask(RecordingEngine("a", "b", "c"), **fields)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [each["logprob"] for each in logprobs] == [-0.5] * 3
    assert all(each["top_logprobs"] for each in logprobs)
    assert ask(RecordingEngine("a"), include=["reasoning.encrypted_content"])["output"][0]["content"][0]["logprobs"] == []


def test_text_and_call_become_two_items() -> None:
    response = ask(
        RecordingEngine("I look. ", *CALL),
        tools=TOOLS,
        options={"template": RENDERS_TOOLS, "tool_call_parser": "hermes"},
        include=["message.output_text.logprobs"],
    )
    text, call = response["output"]
    assert text["content"][0]["text"] == "I look. "
    assert len(text["content"][0]["logprobs"]) == 1
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "show", {"at": "top"})
    assert call["call_id"] != call["id"]


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("required", True),
        ({"type": "function", "name": "show"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "show"}]}, True),
        ("none", False),
        ("auto", False),
        (None, False),
    ],
    ids=str,
)
def test_tool_choice_decides_whether_the_answer_calls(choice: Any, calls: bool) -> None:
    """The grammar's draw differs between the whole answer and the stream, so only the whole answer is looked at."""

    async def run() -> dict[str, Any]:
        async with served(RecordingEngine("Hello")) as http:
            events = await stream(http, tools=TOOLS, tool_choice=choice, text={"format": {"type": "json_object"}} if calls else None)
            assert {item["type"] for item in events[-1]["response"]["output"]} == {"function_call" if calls else "message"}
            return await create(http, tools=TOOLS, tool_choice=choice)

    response = asyncio.run(run())
    assert {item["type"] for item in response["output"]} == {"function_call" if calls else "message"}
    assert response["tool_choice"] == (choice or "auto")


def test_tools_of_a_model_without_tools_are_ignored_as_in_chats() -> None:
    async def run() -> httpx.Response:
        async with served(RecordingEngine("Hello")) as http:
            return await http.post(PATH, json={"input": "Hello", "tools": TOOLS})

    assert asyncio.run(run()).headers["x-llava-tools"] == "ignored"


def test_json_schema_holds_the_answer() -> None:
    engine = RecordingEngine("Hello")
    text: dict[str, Any] = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}, "verbosity": "low"}
    response = ask(engine, text=text)
    assert json.loads(text_of(response))["at"] in ("top", "bottom")
    assert response["text"] == {"format": text["format"] | {"description": None}, "verbosity": "low"}


def test_items_become_the_prompt_of_the_same_chat() -> None:
    """Also the items that a client sends back as it got them."""
    engine = RecordingEngine("Yes")
    items = [
        {"type": "message", **message("developer", {"type": "input_text", "text": "Be brief."})},
        message("user", {"type": "input_image", "image_url": PNG, "detail": "high"}, {"type": "input_text", "text": "Look"}),
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant"}
        | {"content": [{"type": "output_text", "text": "I do.", "annotations": [], "logprobs": []}, {"type": "refusal", "refusal": "No"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "show", "arguments": '{"at":"top"}', "status": "completed"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "done"}]},
        {"role": "user", "content": "Really?"},
    ]
    calls = [{"id": "call_1", "type": "function", "function": {"name": "show", "arguments": '{"at":"top"}'}}]
    chat = [
        {"role": "system", "content": "First."},
        {"role": "system", "content": "Be brief."},
        message("user", {"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "Look"}),
        message("assistant", {"type": "text", "text": "I do."}, {"type": "refusal", "refusal": "No"}) | {"tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": "Really?"},
    ]

    async def run() -> None:
        async with served(engine) as http:
            await create(http, items, instructions="First.")
            answer = await http.post("/v1/chat/completions", json={"messages": chat})
            assert answer.status_code == 200, answer.text

    asyncio.run(run())
    assert engine.prompts[0] == engine.prompts[1]
    assert engine.images == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": ["Hello"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
        ({"input": [message("user", {"type": "input_audio"})]}, "input[0].content[0]"),
        ({"input": [message("user", {"type": "input_image", "image_url": 5})]}, "input[0].content[0].image_url"),
        ({"input": [message("user", {"type": "input_image", "image_url": "data:image/png;base64,AAAA"})]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0].arguments"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": "x"}] * 2049}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "show"}}]}, "tools[0].name"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {"a": 5}}, "metadata"),
        ({"input": "word " * 70_000}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_field_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refusal({"input": "Hello"} | fields, param)


def test_fields_that_ask_for_nothing_are_taken() -> None:
    nothing = dict.fromkeys(("instructions", "tools", "store", "text", "conversation", "prompt", "metadata", "include", "max_tool_calls"))
    response = ask(
        RecordingEngine("Hello"),
        **nothing,
        background=False,
        previous_response_id="",
        truncation="disabled",
        reasoning={"effort": "high"},
        service_tier="auto",
        stream_options={"include_obfuscation": False},
        tool_choice="auto",
        response_format={"type": "text"},
    )
    assert (response["store"], response["previous_response_id"]) == (True, None)


TYPES = ["message", "function_call", "function_call_output", "item_reference", "input_text"]
KEYS = ["type", "role", "content", "text", "image_url", "file_id", "id", "output", "call_id"]
leaves = st.none() | st.booleans() | st.integers() | st.sampled_from([*TYPES, "user", "assistant", PNG])
junk = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


def test_spoilt_request_never_gets_a_5xx() -> None:
    fields = st.dictionaries(st.sampled_from([*CreateResponse.model_fields, *CreateResponse.refused]), junk, max_size=3)

    async def run(bodies: list[Any]) -> None:
        async with served(RecordingEngine("Hello")) as http:
            for body in bodies:
                answer = await http.post(PATH, json=body)
                assert answer.status_code < 500, (body, answer.text)

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.builds(lambda given, others: {"input": given} | others, junk, fields), min_size=10, max_size=15))
    def spoil(bodies: list[Any]) -> None:
        asyncio.run(run(bodies))

    spoil()
