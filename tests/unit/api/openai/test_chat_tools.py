"""The fields for tools in a request, and calls and results in its messages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.api.tools import MAX_DEFINITIONS
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import ChatRequest, ImageUrl, Message, Text, Tool, ToolCall


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    return to_chat(ChatCompletionRequest.parse({"model": "m", "messages": list(messages) or [{"role": "user", "content": "hi"}]} | fields))


def refusal(*messages: Any, **fields: Any) -> str | None:
    with pytest.raises(InvalidRequest) as error:
        chat(*messages, **fields)
    return error.value.param


def tools(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, **fields}} for name in names]


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [choice(name) for name in names]}}


F, G = Tool("f", param="tools[0].function.parameters"), Tool("g", param="tools[1].function.parameters")


@pytest.mark.parametrize(
    ("fields", "used", "tool_choice", "parallel"),
    [
        ({}, (F, G), "auto", True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, (F, G), "auto", False),
        ({"tool_choice": "required"}, (F, G), "required", True),
        ({"tool_choice": "none"}, (), "auto", True),
        ({"tool_choice": choice("g")}, (G,), "named", False),
        ({"tool_choice": allowed("required", "g")}, (G,), "required", True),
        ({"tool_choice": allowed("auto", "g", "f")}, (F, G), "auto", True),
    ],
)
def test_tool_choice_selects_tools(fields: dict[str, Any], used: Any, tool_choice: str, parallel: bool) -> None:
    asked = chat(tools=tools("f", "g"), **fields)
    assert (asked.tools, asked.tool_choice, asked.parallel_tool_calls) == (used, tool_choice, parallel)


def test_functions_are_tools_of_which_one_is_called() -> None:
    functions = [{"name": "f"}, {"name": "g", "description": "G", "parameters": {"type": "object"}}]
    asked = chat(functions=functions, function_call={"name": "g"})
    assert asked.tools == (Tool("g", "G", '{"type":"object"}', "functions[1].parameters"),)
    assert (asked.tool_choice, asked.tools_param) == ("named", "functions")
    assert not chat(functions=functions).parallel_tool_calls
    assert chat(functions=functions, function_call="none").tools == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tools": tools("f"), "function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}], "tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{"name": "f f"}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions[1].name"),
        ({"tools": tools("f"), "tool_choice": allowed("required")}, "tool_choice.allowed_tools.tools"),
        ({"tools": tools("f", parameters={"type": ["object"]})}, "tools[0].function.parameters.type"),
        ({"tools": tools(*(f"f{at}" for at in range(9)), description="x" * (MAX_DEFINITIONS // 8))}, "tools[7].function"),
        ({"tools": tools("f"), "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_contradictory_and_bad_tools_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields) == param


def test_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    assert refusal(tools=tools("f", parameters=schema)) == "tools[0].function.parameters"
    nested = "{" + '"a":{' * 300 + "}" * 301
    call = {"id": "1", "function": {"name": "f", "arguments": nested}}
    assert refusal({"role": "assistant", "tool_calls": [call]}) == "messages[0].tool_calls[0].function.arguments"


def test_history_becomes_calls_and_results() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": "not json"}},
        {"id": "3", "type": "function", "function": {"name": "f", "arguments": {"a": "an object, as Ollama has it"}}},
    ]
    image = {"type": "image_url", "image_url": {"url": "http://a/b"}}
    asked = chat(
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "seen"}, image]},
        {"role": "assistant", "content": "", "function_call": {"name": "g", "arguments": ""}},
        {"role": "function", "name": "g", "content": None},
    )
    assert asked.messages == (
        Message(
            "assistant",
            (),
            (
                ToolCall("1", "f", '{"a":1}'),
                ToolCall("2", "f", '"not json"'),
                ToolCall("3", "f", '{"a":"an object, as Ollama has it"}'),
            ),
        ),
        Message("tool", (Text("seen"), ImageUrl("http://a/b", "messages[1].content[1].image_url.url")), tool_call_id="1"),
        Message("assistant", (), (ToolCall("g", "g", '""'),)),
        Message("tool", (), tool_call_id="g"),
    )


def test_message_with_calls_cannot_be_continued() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    assert refusal({"role": "assistant", "tool_calls": [call]}, continue_final_message=True) == "continue_final_message"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["function", "f", "auto", "required", "object"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "name", "parameters", "description", "properties", "id", "arguments", "allowed_tools", "tools", "mode"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), JUNK)), JUNK)
def test_junk_is_refused_and_breaks_nothing(fields: dict[str, Any], calls: Any) -> None:
    try:
        chat({"role": "assistant", "content": "a", "tool_calls": calls}, **fields)
    except InvalidRequest as error:
        assert error.param
