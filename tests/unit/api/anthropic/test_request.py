"""Anthropic's request, field by field, without a server."""

import re
from typing import Any

import pytest
from helpers.documentation import rows
from helpers.json_values import JSON
from helpers.server import ROOT
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.anthropic.messages import ERROR, MAX_NAME
from llava_gateway.api.anthropic.request import CountTokensRequest, CreateMessageRequest
from llava_gateway.api.anthropic.tools import CustomTool
from llava_gateway.api.openai.messages import MAX_MESSAGES, MAX_PARTS
from llava_gateway.api.schema import MAX_STRUCTURED_OUTPUT
from llava_gateway.errors import GatewayError, InvalidRequest
from llava_gateway.types import (
    MODEL_DEFAULTS,
    ChatRequest,
    ImageBase64,
    ImageFileId,
    ImageUrl,
    Message,
    SamplingParams,
    StructuredOutput,
    Text,
    Tool,
    ToolCall,
)

DOCUMENTATION = (ROOT / "docs" / "anthropic.md").read_text()
HELLO = {"role": "user", "content": "Hello"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"at": {"enum": ["top", "bottom"]}}}
SHOW = {"name": "show", "description": "Show a place", "input_schema": SCHEMA}
SHOW_TOOL = Tool("show", "Show a place", '{"type":"object","properties":{"at":{"enum":["top","bottom"]}}}', "tools[0].input_schema")
TEXT = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
BASE64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw"}}
URL: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.jpg"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "show", "input": {"at": "top"}}


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    body = {"model": "m", "max_tokens": 5, "messages": list(messages or [HELLO])}
    return CreateMessageRequest.parse(body | fields).to_chat()


def result(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(content)} | fields


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def test_smallest_request_has_the_defaults_of_chat_completions() -> None:
    sampling = SamplingParams(lower_max_tokens_to_fit=True, unset=frozenset(MODEL_DEFAULTS))
    assert chat(max_tokens=None) == ChatRequest(model="m", messages=(Message("user", (Text("Hello"),)),), sampling=sampling)


def test_every_sampling_field_reaches_the_core() -> None:
    asked = chat(max_tokens=7, temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["x", "y"], stream=True)
    unset = frozenset(MODEL_DEFAULTS) - {"temperature", "top_p", "top_k"}
    assert asked.stream
    assert asked.sampling == SamplingParams(
        max_tokens=7, lower_max_tokens_to_fit=True, temperature=0.5, top_p=0.9, top_k=3, stop=("x", "y"), unset=unset
    )


def test_top_p_of_zero_takes_the_likeliest_token() -> None:
    sampling = chat(top_p=0, temperature=1.5).sampling
    assert (sampling.temperature, sampling.top_p) == (0, 1)
    assert "temperature" not in chat(top_p=0).sampling.unset


@pytest.mark.parametrize("system", ["Be kind.", [{"type": "text", "text": "Be kind."}]])
def test_system_prompt_comes_first(system: Any) -> None:
    asked = chat(HELLO, {"role": "system", "content": "More."}, HELLO, system=system)
    assert [message.role for message in asked.messages] == ["system", "user", "system", "user"]
    assert asked.messages[0].content == (Text("Be kind."),)


def test_images_keep_their_place_and_their_path() -> None:
    (message,) = chat(user(BASE64, TEXT, URL, {"type": "image", "source": {"type": "file", "file_id": "file-1"}})).messages
    image, text, url, file = message.content
    assert file == ImageFileId("file-1", "messages[0].content[3].source.file_id")
    assert image == ImageBase64("iVBORw", "messages[0].content[0].source.data")
    assert text == Text("a")
    assert url == ImageUrl("https://example.com/cat.jpg", "messages[0].content[2].source.url")


def test_results_of_tools_become_messages_in_order() -> None:
    history = [HELLO, assistant({"type": "thinking", "thinking": "hm", "signature": "x"}, TEXT, USE), user(result(TEXT, URL), TEXT)]
    asked = chat(*history)
    assert not asked.continue_last
    assert asked.messages[1:] == (
        Message("assistant", (Text("a"),), (ToolCall("toolu_1", "show", '{"at":"top"}'),)),
        Message(
            "tool", (Text("a"), ImageUrl(URL["source"]["url"], "messages[2].content[0].content[1].source.url")), tool_call_id="toolu_1"
        ),
        Message("user", (Text("a"),)),
    )


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result("x") | {"content": "done"}, (Text("done"),)),
        (result() | {"content": None}, ()),
        (result(TEXT, is_error=True), (Text(ERROR), Text("a"))),
        ({"type": "tool_result", "tool_use_id": "toolu_1"}, ()),
    ],
)
def test_result_of_a_tool_shows_its_text_and_its_error(block: Any, content: Any) -> None:
    assert chat(HELLO, assistant(USE), user(block)).messages[-1] == Message("tool", content, tool_call_id="toolu_1")


def test_last_message_of_the_assistant_is_continued() -> None:
    assert chat(HELLO, {"role": "assistant", "content": "The answer is ("}).continue_last
    for nothing in ({"role": "assistant", "content": ""}, assistant(), assistant({"type": "redacted_thinking", "data": "x"})):
        asked = chat(HELLO, nothing)
        assert not asked.continue_last
        assert len(asked.messages) == 1


@pytest.mark.parametrize(
    ("choice", "used"),
    [
        (None, ("auto", True)),
        ({"type": "auto"}, ("auto", True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", False)),
        ({"type": "any"}, ("required", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        ({"type": "tool", "name": "show"}, ("named", False)),
    ],
)
def test_tool_choice_decides_about_calls(choice: Any, used: Any) -> None:
    asked = chat(tools=[SHOW], tool_choice=choice)
    assert asked.tools == (SHOW_TOOL,)
    assert (asked.tool_choice, asked.parallel_tool_calls) == used


def test_no_tool_is_used_if_none_may_be_called() -> None:
    assert not chat(tools=[SHOW], tool_choice={"type": "none"}).tools
    assert not chat(tool_choice={"type": "auto"}).tools
    assert not chat(tools=[], tool_choice={"type": "none"}).tools


def test_schema_of_the_answer_is_taken_from_both_fields() -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    for fields, param in (
        ({"output_config": {"format": wanted, "effort": "low"}}, "output_config.format"),
        ({"output_format": wanted}, "output_format"),
    ):
        assert chat(**fields).sampling.structured_output == StructuredOutput("json", SHOW_TOOL.parameters, f"{param}.schema")
    assert chat(output_config={"format": wanted}, tools=[SHOW], tool_choice={"type": "any"}).sampling.structured_output is None


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive"}},
        {"metadata": {"user_id": "x"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}},
        {"container": None, "mcp_servers": [], "context_management": {"edits": []}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"output_config": {"effort": "high"}},
        {"tools": None, "tool_choice": None, "system": None, "stop_sequences": None, "stream": None, "temperature": None},
        {"a field of tomorrow": 5},
    ],
)
def test_field_that_changes_no_answer_is_taken(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [assistant()]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [user(5)]}, "messages[0].content[0]"),
    ({"messages": [user({"text": "a"})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
    ({"messages": [user({"type": "document", "source": {}})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "search_result"})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "container_upload"})]}, "messages[0].content[0].type"),
    ({"messages": [user(result({"type": "document"}))]}, "messages[0].content[0].content[0].type"),
    ({"messages": [user(result(USE))]}, "messages[0].content[0].content[0].type"),
    ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
    ({"messages": [user(USE)]}, "messages[0].content[0].type"),
    ({"messages": [HELLO, assistant(result())]}, "messages[1].content[0].type"),
    ({"messages": [HELLO, {"role": "system", "content": [BASE64]}]}, "messages[1].content[0].type"),
    ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source"),
    ({"messages": [user({"type": "image", "source": "https://x"})]}, "messages[0].content[0].source"),
    ({"messages": [user({"type": "image", "source": {"type": "base64"}})]}, "messages[0].content[0].source.data"),
    ({"messages": [user({"type": "image", "source": {"type": "url", "url": ""}})]}, "messages[0].content[0].source.url"),
    ({"messages": [user({"type": "image", "source": {"type": "file"}})]}, "messages[0].content[0].source.file_id"),
    (
        {"messages": [user(BASE64 | {"transformations": {"oversized_image": "error"}})]},
        "messages[0].content[0].transformations.oversized_image",
    ),
    ({"messages": [HELLO, assistant(USE)]}, "messages"),
    ({"messages": [HELLO, assistant(USE), {"role": "assistant", "content": "So"}]}, "messages"),
    ({"messages": [HELLO, assistant(USE | {"input": "x"})]}, "messages[1].content[0].input"),
    ({"messages": [HELLO, assistant(USE | {"name": "x" * (MAX_NAME + 1)})]}, "messages[1].content[0].name"),
    ({"messages": [HELLO, {"role": "assistant", "content": "So"}], "tools": [SHOW], "tool_choice": {"type": "any"}}, "tool_choice"),
    ({"messages": [HELLO] * (MAX_MESSAGES + 1)}, "messages"),
    ({"messages": [user(*[TEXT] * (MAX_PARTS + 1))]}, "messages"),
    ({"messages": [user(*[result(*[TEXT] * (MAX_PARTS // 2))] * 2)]}, "messages"),
    ({"system": 5}, "system"),
    ({"system": [BASE64]}, "system[0].type"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"thread": {"id": "t"}}, "thread"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [SHOW | {"name": "a b"}]}, "tools[0].name"),
    ({"tools": [SHOW | {"name": "x" * (MAX_NAME + 1)}]}, "tools[0].name"),
    ({"tools": [SHOW, SHOW]}, "tools[1].name"),
    ({"tools": [SHOW] * 129}, "tools"),
    ({"tools": [SHOW | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
    ({"tools": [SHOW | {"input_schema": {"type": "object", "title": "x" * MAX_STRUCTURED_OUTPUT}}]}, "tools[0].input_schema"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [SHOW], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [SHOW], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
    ({"tools": [SHOW], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
    ({"tools": [SHOW], "tool_choice": "auto"}, "tool_choice"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_format": {"type": "json_schema", "schema": {"title": "x" * MAX_STRUCTURED_OUTPUT}}}, "output_format.schema"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{index}" for index, (_, param) in enumerate(BAD)])
def test_wrong_field_is_refused_by_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert param in refused.value.message_with_param


def test_deep_values_are_refused_by_their_path() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"properties": deep}
    for fields, param in (
        ({"tools": [SHOW | {"input_schema": {"properties": deep}}]}, "tools[0].input_schema"),
        ({"messages": [HELLO, assistant(USE | {"input": deep})]}, "messages[1].content[0].input"),
        ({"output_config": {"format": {"type": "json_schema", "schema": deep}}}, "output_config.format.schema"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            chat(**fields)
        assert refused.value.param == param


def test_count_of_tokens_has_the_prompt_of_the_message() -> None:
    """A client sends the same prompt to both paths."""
    body = {"model": "m", "messages": [HELLO, assistant(TEXT)], "system": "Be kind.", "tools": [SHOW], "tool_choice": {"type": "auto"}}
    counted, asked = CountTokensRequest.parse(dict(body)).to_prompt(), CreateMessageRequest.parse(dict(body)).to_chat()
    assert (counted.messages, counted.tools, counted.continue_last) == (asked.messages, asked.tools, asked.continue_last)


def test_documentation_describes_every_field() -> None:
    declared = [row for model in (CreateMessageRequest, CustomTool) for row in rows(model)]
    assert sorted(re.findall(r"^\| `[a-z_]+` \| (?:honoured|ignored|refused) \|.*$", DOCUMENTATION, re.MULTILINE)) == sorted(declared)
    assert set(rows(CountTokensRequest)) < set(declared)


FIELDS = (
    "text",
    "source",
    "input",
    "id",
    "name",
    "tool_use_id",
    "content",
    "is_error",
    "transformations",
    "data",
    "url",
    "schema",
    "format",
)
TYPES = ("text", "image", "tool_use", "tool_result", "thinking", "document", "base64", "url", "file", "auto", "any", "tool", "json_schema")
OBJECTS = st.recursive(
    JSON | st.sampled_from([TEXT, BASE64, URL, USE, SHOW, HELLO]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(
            lambda kind, fields: {"type": kind} | fields,
            st.sampled_from(TYPES),
            st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
        )
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": OBJECTS}), min_size=1, max_size=4
)


@given(
    fields=st.dictionaries(st.sampled_from([*CreateMessageRequest.model_fields, *CreateMessageRequest.refused]), OBJECTS, max_size=4),
    messages=MESSAGES | OBJECTS,
)
def test_any_body_is_parsed_or_refused_by_name(fields: dict[str, Any], messages: Any) -> None:
    try:
        assert isinstance(chat(**{"messages": messages} | fields), ChatRequest)
    except GatewayError as error:
        assert error.status == 400
        assert error.param
        assert error.param.split("[")[0].split(".")[0] in {*CreateMessageRequest.model_fields, *CreateMessageRequest.refused}
