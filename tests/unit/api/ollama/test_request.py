"""Ollama's requests, field by field, without a server."""

import re
from typing import Any

import pytest
from helpers.documentation import rows
from helpers.json_values import JSON
from helpers.server import ROOT
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.ollama.messages import to_parts, to_raw_prompt
from llava_gateway.api.ollama.options import INT32, Options
from llava_gateway.api.ollama.request import ChatBody, GenerateBody, PullBody, ShowBody
from llava_gateway.errors import GatewayError, InvalidRequest
from llava_gateway.types import MODEL_DEFAULTS, ChatRequest, ImageBase64, Message, SamplingParams, StructuredOutput, Text, Tool, ToolCall

HELLO = {"role": "user", "content": "Hello"}
IMAGE = "iVBORw0KGgo="
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"at": {"enum": ["top", "bottom"]}}}
TOOL = {"type": "function", "function": {"name": "show", "description": "Show a place", "parameters": SCHEMA}}


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatBody.parse({"messages": list(messages or [HELLO])} | fields).to_chat("m")


def generate(**fields: Any) -> ChatRequest:
    return GenerateBody.parse({"prompt": "Hello"} | fields).to_chat("m")


def sampling(**options: Any) -> SamplingParams:
    return chat(options=options).sampling


def refused(param: str, work: Any, *arguments: Any, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        work(*arguments, **fields)
    assert refusal.value.param == param
    return refusal.value.message


def test_request_without_options_has_ollamas_defaults_unless_the_model_has_its_own() -> None:
    plain = sampling()
    assert (plain.temperature, plain.top_k, plain.top_p, plain.repetition_penalty) == (0.8, 40, 0.9, 1.0)
    assert plain.unset == set(MODEL_DEFAULTS)
    assert plain.max_tokens is None
    assert plain.lower_max_tokens_to_fit
    assert chat(options=None).sampling == plain


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": "0.5"}, {"temperature": 0.5}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": None}),
        ({"num_predict": 5}, {"max_tokens": 5}),
        ({"num_predict": -1}, {"max_tokens": INT32}),
        ({"num_predict": -2}, {"max_tokens": INT32}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"repeat_penalty": 1.2, "presence_penalty": 1, "repeat_last_n": 0}, {"repetition_penalty": 1.0, "presence_penalty": 0.0}),
        ({"presence_penalty": 1, "frequency_penalty": -1, "repeat_last_n": 64}, {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
        ({"num_ctx": 8192, "num_gpu": 1, "use_mmap": True, "unknown": 1, "mirostat": 0, "typical_p": 1.0, "tfs_z": 1}, {}),
    ],
)
def test_option_is_mapped_to_its_sampling_parameter(options: Any, expected: dict[str, Any]) -> None:
    found = sampling(**options)
    assert {name: getattr(found, name) for name in expected} == expected
    names = {"repeat_penalty": "repetition_penalty"}
    set_by_client = {names.get(name, name) for name in options} | ({"temperature"} if options.get("top_p") == 0 else set())
    assert found.unset == set(MODEL_DEFAULTS) - set_by_client


@pytest.mark.parametrize(
    "option", [{"mirostat": 1}, {"typical_p": 0.7}, {"tfs_z": 0.5}, {"temperature": -1}, {"top_k": 1.5}, {"stop": [""]}, {"seed": "x"}]
)
def test_option_that_would_change_the_answer_is_refused_by_name(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(InvalidRequest, match=f"^options.{name}"):
        sampling(**option)


def test_format_is_json_or_a_schema() -> None:
    assert chat(format="json").sampling.structured_output == StructuredOutput("json_object", param="format")
    found = chat(format=SCHEMA).sampling.structured_output
    assert found == StructuredOutput("json", '{"type":"object","properties":{"at":{"enum":["top","bottom"]}}}', "format")
    assert chat(format={}).sampling.structured_output == StructuredOutput("json", "{}", "format")
    assert chat(format="").sampling.structured_output is None
    refused("format", chat, format="xml")
    refused("format", chat, format={"enum": ["a" * 70_000]})


def test_images_stand_at_their_placeholders_and_others_come_first() -> None:
    one, two, three = (ImageBase64(name, f"images[{index}]") for index, name in enumerate("abc"))
    assert to_parts("Which?", ["a"], "images") == (one, Text("Which?"))
    assert to_parts("A [img] and [img].", ["a", "b"], "images") == (Text("A "), one, Text(" and "), two, Text("."))
    assert to_parts("[img]Which?", ["a", "b", "c"], "images") == (two, three, one, Text("Which?"))
    assert to_parts("A [img] and [img].", ["a"], "images") == (Text("A "), one, Text(" and [img]."))
    assert to_parts("A literal [img].", [], "images") == (Text("A literal [img]."),)
    assert to_parts("", [], "images") == ()


@given(st.text("[img]- 01", max_size=30), st.integers(0, 4))
def test_every_image_has_one_part_and_no_text_is_lost(text: str, count: int) -> None:
    parts = to_parts(text, ["a"] * count, "images")
    images = [part for part in parts if isinstance(part, ImageBase64)]
    texts = "".join(part.text for part in parts if isinstance(part, Text))
    assert sorted(image.param for image in images) == [f"images[{index}]" for index in range(count)]
    assert len(texts) == len(text) - len("[img]") * min(count, text.count("[img]"))


def test_raw_prompt_has_an_image_token_for_each_image() -> None:
    def raw(prompt: str, *images: str) -> tuple[str, list[str]]:
        text, sources = to_raw_prompt(prompt, images, "<image>")
        return text, [str(source.base64) for source in sources]

    assert raw("USER: Which?", "a") == ("<image>USER: Which?", ["a"])
    assert raw("USER: <image>\nWhich?", "a") == ("USER: <image>\nWhich?", ["a"])
    assert raw("[img] or [img]?", "a", "b") == ("<image> or <image>?", ["a", "b"])
    assert raw("[img-1] or [img-0]?", "a", "b") == ("<image> or <image>?", ["b", "a"])
    assert raw("[img-1]?", "a", "b") == ("<image><image>?", ["a", "b"])
    assert raw("A literal [img].") == ("A literal [img].", [])
    for wrong in ("[img-0] [img-0]", "[img-5]", "<image> [img]", "[img] [img] [img]"):
        refused("prompt", raw, wrong, "a", "b")


def test_messages_of_every_role_are_translated() -> None:
    found = chat(
        {"role": "SYSTEM", "content": "Be brief."},
        {"role": "user", "content": "Where?", "images": [IMAGE]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "show", "arguments": {"at": "top"}}}]},
        {"role": "tool", "tool_name": "show", "content": "shown"},
        {"role": "assistant", "content": None, "thinking": "Hm."},
        HELLO,
        tools=[TOOL],
    )
    call = ToolCall("call_1", "show", '{"at":"top"}')
    assert found.messages == (
        Message("system", (Text("Be brief."),)),
        Message("user", (ImageBase64(IMAGE, "messages[1].images[0]"), Text("Where?"))),
        Message("assistant", (), (call,)),
        Message("tool", (Text("shown"),), tool_call_id="call_1"),
        Message("assistant", ()),
        Message("user", (Text("Hello"),)),
    )
    assert found.tools == (
        Tool("show", "Show a place", '{"type":"object","properties":{"at":{"enum":["top","bottom"]}}}', "tools[0].function.parameters"),
    )
    assert found.tool_choice == "auto"
    assert chat(tools=[]).tools == ()


def test_image_behind_a_text_stays_there() -> None:
    assert chat({"role": "user", "content": "A [img] and B [img]?", "images": [IMAGE, IMAGE]}).messages[0].images_in_place
    assert not chat({"role": "user", "content": "[img]Which?", "images": [IMAGE]}).messages[0].images_in_place
    assert generate(prompt="Is [img] red?", images=[IMAGE]).messages[0].images_in_place
    assert not generate(images=[IMAGE]).messages[0].images_in_place


def test_result_of_a_tool_finds_its_call_by_id_name_and_order() -> None:
    def call(name: str, call_id: str | None = None) -> dict[str, Any]:
        return {"id": call_id, "function": {"name": name, "arguments": {}}}

    calls = {"role": "assistant", "tool_calls": [call("a"), call("b"), call("a"), call("c", "mine")]}
    results: list[dict[str, Any]] = [{"tool_name": "a"}, {"tool_call_id": "mine"}, {"tool_name": "a"}, {}, {"tool_name": "a"}]
    found = chat(calls, *({"role": "tool", "content": "x"} | result for result in results)).messages[1:]
    assert [message.tool_call_id for message in found] == ["call_1", "mine", "call_3", "call_2", ""]


def test_answer_continues_a_last_message_of_the_assistant() -> None:
    assert chat(HELLO, {"role": "assistant", "content": "The"}).continue_last
    assert not chat(HELLO, {"role": "assistant", "content": ""}).continue_last
    assert not chat(HELLO).continue_last


def test_generate_is_a_chat_with_a_system_message_and_a_template() -> None:
    found = generate(system="Be brief.", images=[IMAGE], template="vicuna_v1")
    image = ImageBase64(IMAGE, "images[0]")
    assert found.messages == (Message("system", (Text("Be brief."),)), Message("user", (image, Text("Hello"))))
    assert found.template == "vicuna_v1"
    assert found.param == "prompt"
    assert generate(template="").template is None
    assert "vicuna_v1" in refused("template", generate, template="{{ .Prompt }}")


def test_raw_prompt_is_not_rendered() -> None:
    body = GenerateBody.parse({"prompt": "USER: [img]\nHello ASSISTANT:", "images": [IMAGE], "raw": True})
    completion = body.to_completion("m", "<image>")
    assert (completion.prompt, completion.images) == ("USER: <image>\nHello ASSISTANT:", (ImageBase64(IMAGE, "images[0]"),))
    for name, value in {"system": "a", "template": "plain", "context": [91, 93]}.items():
        body = GenerateBody.parse({"prompt": "Hello", "raw": True, name: value})
        refused("raw", body.to_completion, "m", "<image>")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "b"}, "suffix"),
        ({"width": 512}, "width"),
        ({"_debug_render_only": True}, "_debug_render_only"),
        ({"prompt": 5}, "prompt"),
        ({"images": [5]}, "images[0]"),
        ({"images": "a"}, "images"),
        ({"context": ["a"]}, "context[0]"),
    ],
)
def test_wrong_field_of_generate_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    refused(param, GenerateBody.parse, body)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "robot"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content"),
        ({"messages": [HELLO | {"images": [""]}]}, "messages[0].images[0]"),
        ({"messages": [HELLO] * 3000}, "messages"),
        ({"messages": [HELLO], "options": []}, "options"),
        ({"messages": [HELLO], "top_logprobs": 3}, "top_logprobs"),
        ({"messages": [HELLO], "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": [HELLO], "tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": [HELLO], "tools": [{"type": "web"}]}, "tools[0].type"),
        ({"messages": [HELLO], "tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ],
)
def test_wrong_field_of_chat_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    refused(param, lambda: ChatBody.parse(body).to_chat("m"))


def test_fields_without_effect_are_accepted() -> None:
    assert chat(think=True, keep_alive="5m", truncate=True, shift=False, _debug_render_only=False) == chat()
    assert chat(think="high", keep_alive=0, keep="x") == chat()
    assert generate(suffix="", width=0, context=[]) == generate()


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("messages", "tools", "options", "format", "logprobs", "think"), JSON)))
def test_any_json_is_a_chat_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        request = ChatBody.parse(body)
        if request.messages:
            request.to_chat("m")
    except GatewayError as error:
        assert error.status == 400
        assert error.param


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("prompt", "images", "context", "system", "template", "raw"), JSON)))
def test_any_json_is_a_prompt_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        request = GenerateBody.parse(body)
        _ = request.to_completion("m", "<image>") if request.raw else request.to_chat("m")
    except GatewayError as error:
        assert error.status == 400
        assert error.param


def test_documentation_has_the_declared_fields() -> None:
    declared = {row for model in (ChatBody, GenerateBody, ShowBody, PullBody, Options) for row in rows(model)}
    documentation = (ROOT / "docs" / "ollama.md").read_text()
    found = re.findall(r"^\| `[a-z0-9_]+` \| (?:honoured|ignored|refused) \|.*$", documentation, re.MULTILINE)
    assert set(found) == declared
