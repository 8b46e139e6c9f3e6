"""Tools on the real engine. The demo model knows no tools, so these tests are about the form of the answers."""

import json
from typing import Any

import httpx
import pytest
from helpers.contract import check_stream, frames
from helpers.errors import refused
from helpers.requests import MODEL, body, image
from jsonschema import validate
from openai import OpenAI, pydantic_function_tool
from openai.lib.streaming.chat import FunctionToolCallArgumentsDoneEvent
from pydantic import BaseModel

CHAT = "/v1/chat/completions"
GRID = ("red", "blue", "green", "orange")
GREETING = "I see no image. I am a small demo model: send me an image and ask me to describe it."
PAINT = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["color"],
}
SHOW = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Place"}},
    "required": ["at"],
    "$defs": {"Place": {"enum": ["top", "bottom"]}},
}
SCHEMAS = {"paint": PAINT, "show": SHOW}


def tool(name: str, parameters: dict[str, Any] | None = None, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


TOOLS = [tool("paint", PAINT, description="Paint an area", strict=True), tool("show", SHOW)]
NAMED: Any = {"type": "function", "function": {"name": "show"}}


def ask(http: httpx.Client, *content: Any, **fields: Any) -> dict[str, Any]:
    """Return the first choice of a whole answer."""
    response = http.post(CHAT, json=body(*(content or ("Hello",)), tools=TOOLS) | fields)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def streamed(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Return the first choice of a stream, joined to the form of a whole answer."""
    response = http.post(CHAT, json=body("Hello", tools=TOOLS, stream=True) | fields)
    check_stream(CHAT, response.text)
    *events, _ = frames(response.text)
    content, calls, reason = "", list[dict[str, Any]](), None
    for choice in (choice for event in events for choice in json.loads(event)["choices"] if choice["index"] == 0):
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["function"]["arguments"] == ""
                calls.append({"id": call["id"], "type": call["type"], "function": call["function"]})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    message = {"role": "assistant", "content": content or None, "refusal": None, "tool_calls": calls}
    return {"message": message, "finish_reason": reason}


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the calls of a choice, whose arguments are valid against the tools' schemas."""
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in choice["message"]["tool_calls"]]
    for name, arguments in calls:
        validate(arguments, SCHEMAS[name])
    return calls


def test_named_tool_is_called(http: httpx.Client) -> None:
    choice = ask(http, image(GRID), "What is this?", tool_choice=NAMED)
    assert [name for name, _ in calls_of(choice)] == ["show"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["id"].startswith("call_")


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tools_are_called(http: httpx.Client, parallel: bool) -> None:
    choice = ask(http, tool_choice="required", parallel_tool_calls=parallel, max_tokens=600)
    calls = calls_of(choice)
    assert len(calls) == 1 if not parallel else len(calls) >= 1
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_several_tools_are_called_in_one_answer(http: httpx.Client) -> None:
    """The bias makes the model begin another call instead of closing the list."""
    comma = http.post("/tokenize", json={"prompt": ",", "add_special_tokens": False}).json()["tokens"]
    choice = ask(http, tool_choice="required", tools=[TOOLS[1]], max_tokens=2000, logit_bias={str(comma[-1]): 100})
    assert len(calls_of(choice)) > 1
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == len(choice["message"]["tool_calls"])


@pytest.mark.parametrize("fields", [{"tool_choice": NAMED}, {"tool_choice": "required"}, {"tool_choice": "required", "max_tokens": 20}, {}])
def test_streamed_answer_equals_the_whole_one(http: httpx.Client, fields: dict[str, Any]) -> None:
    whole, stream = ask(http, **fields), streamed(http, **fields)
    whole["message"]["content"] = whole["message"]["content"] or None
    for choice in (whole, stream):
        for call in choice["message"].setdefault("tool_calls", []):
            assert call.pop("id")
    assert stream["message"] == whole["message"]
    assert stream["finish_reason"] == whole["finish_reason"]


def test_call_that_is_cut_off_finishes_with_length(http: httpx.Client) -> None:
    for tool_choice in (NAMED, "required"):
        choice = ask(http, tool_choice=tool_choice, max_tokens=2)
        assert choice["finish_reason"] == "length"
        assert not choice["message"]["content"]


def test_sampled_calls_are_valid_in_every_choice(http: httpx.Client) -> None:
    response = http.post(CHAT, json=body("Hello", tools=TOOLS, tool_choice="required", n=4, temperature=1.5, logprobs=True, max_tokens=900))
    ids = set()
    for choice in response.json()["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert calls_of(choice)
        assert choice["logprobs"]["content"]
        ids |= {call["id"] for call in choice["message"]["tool_calls"]}
    assert len(ids) >= 4


def test_response_format_does_not_disturb_a_required_call(http: httpx.Client) -> None:
    choice = ask(http, tool_choice="required", response_format={"type": "json_object"}, max_tokens=600)
    assert calls_of(choice)


@pytest.mark.parametrize("stream", [False, True])
def test_auto_answers_in_text_and_a_header_says_so(http: httpx.Client, stream: bool) -> None:
    response = http.post(CHAT, json=body("Hello", tools=TOOLS, stream=stream))
    assert response.headers["x-llava-tools"] == "ignored"
    assert GREETING[-20:] in response.text.replace('"}', "") or stream
    assert "x-llava-tools" not in http.post(CHAT, json=body("Hello", tools=TOOLS, tool_choice="required")).headers


def test_tools_that_may_not_be_called_are_not_in_the_prompt(http: httpx.Client) -> None:
    def prompt_tokens(**fields: Any) -> int:
        tokens: int = http.post(CHAT, json=body("Hello") | fields).json()["usage"]["prompt_tokens"]
        return tokens

    plain = prompt_tokens()
    assert prompt_tokens(tools=TOOLS, tool_choice="none") == prompt_tokens(tools=TOOLS) == plain
    for tool_choice in ("required", NAMED):
        tokens = prompt_tokens(tools=TOOLS, tool_choice=tool_choice)
        assert tokens > plain
        count = http.post("/tokenize", json={**body("Hello", tools=TOOLS, tool_choice=tool_choice)}).json()["count"]
        assert count == tokens
    response = http.post(CHAT, json=body("Hello", tools=TOOLS, tool_choice="none"))
    assert response.json()["choices"][0]["message"]["content"] == GREETING
    assert "x-llava-tools" not in response.headers


def test_older_form_of_tools_is_answered_in_the_older_form(client: OpenAI) -> None:
    functions: Any = [each["function"] for each in TOOLS]
    create: Any = client.chat.completions.create
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "functions": functions}
    choice = create(**asked, function_call={"name": "show"}).choices[0]
    assert choice.message.function_call.name == "show"
    validate(json.loads(choice.message.function_call.arguments), SHOW)
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    chunks = [chunk.choices[0] for chunk in create(**asked, function_call={"name": "show"}, stream=True)]
    calls = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
    assert "".join(call.name or "" for call in calls) == "show"
    assert "".join(call.arguments for call in calls) == choice.message.function_call.arguments
    assert create(**asked, function_call="none").choices[0].message.content == GREETING
    assert create(**asked).choices[0].message.content == GREETING


class Show(BaseModel):
    """Show a place."""

    top: bool


def test_sdk_parses_calls_of_pydantic_tools(client: OpenAI) -> None:
    tools: Any = [pydantic_function_tool(Show)]
    message: Any = {"role": "user", "content": "Hello"}
    completion = client.chat.completions.parse(
        model=MODEL, messages=[message], tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=0
    )
    (call,) = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Show)


def test_sdk_assembles_a_stream_of_calls(client: OpenAI) -> None:
    tools: Any = [pydantic_function_tool(Show)]
    message: Any = {"role": "user", "content": "Hello"}
    options: Any = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    with client.chat.completions.stream(model=MODEL, messages=[message], tools=tools, **options) as stream:
        done = [event for event in stream if isinstance(event, FunctionToolCallArgumentsDoneEvent)]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Show)
    assert [event.arguments for event in done] == [call.function.arguments]


def test_history_of_calls_and_results_with_an_image_is_answered(http: httpx.Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "show", "arguments": '{"at": "top"}'}}
    history = [
        {"role": "user", "content": "Show me the picture."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "</s> here <image>"}, image(GRID)]},
        {"role": "user", "content": "Describe this image."},
    ]
    for fields in ({}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required", "max_tokens": 400}):
        response = http.post(CHAT, json=body("x") | {"messages": history} | fields)
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 576
        assert response.json()["choices"][0]["message"]["content"] or response.json()["choices"][0]["message"]["tool_calls"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": "f"}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
    ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
    ({"tools": [tool("f")] * 129}, "tools"),
    ({"tools": [tool("f", {"type": "array"})]}, "tools[0].function.parameters.type"),
    ({"tools": [tool("f", {"type": "object", "description": "x" * 70_000})]}, "tools[0].function.parameters"),
    ({"tools": [tool("f", description=5)]}, "tools[0].function.description"),
    ({"tools": [tool("f", {"properties": {"a": {"type": "foo"}}})], "tool_choice": "required"}, "tools"),
    (
        {"tools": [tool("f", {"properties": {"a": {"type": "foo"}}})], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tools[0].function.parameters",
    ),
    ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED, tool("other")]}}},
        "tool_choice.allowed_tools.tools[1].function.name",
    ),
    ({"tools": TOOLS, "functions": [{"name": "f"}]}, "functions"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.name"),
    ({"tools": TOOLS, "tool_choice": NAMED, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ({"tools": TOOLS, "tool_choice": NAMED, "min_tokens": 2}, "min_tokens"),
    ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a"}], "continue_final_message": True, "tools": TOOLS, "tool_choice": NAMED},
        "continue_final_message",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_tools_are_refused_by_their_path(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(http.post(CHAT, json=body("Hello") | fields), 400, param)


def test_tools_that_do_not_fit_are_refused_with_their_tokens(http: httpx.Client) -> None:
    tools = [tool(f"f{index}", PAINT, description="Paint an area of the picture. " * 40) for index in range(8)]
    error = refused(http.post(CHAT, json=body("Hello", tools=tools, tool_choice="required")), 400, "messages", "context_length_exceeded")
    assert "The 8 tools take" in error["message"]
