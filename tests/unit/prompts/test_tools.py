"""Tools, calls and results in prompts: as a template's variables, and as text for templates that know no tools."""

import json

import pytest
from helpers.prompts import IMAGE, model_info
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import ContextLengthExceeded
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, Template
from llava_gateway.types import Message, Text, Tool, ToolCall

CONTROLS = ("<image>", "<s>", "</s>", "<unk>", "<pad>")
TOOL = Tool("show", 'Show a "place"', '{"type":"object"}')
CALLS = Message("assistant", (Text("I look."),), (ToolCall("1", "show", '{"at":"top"}'), ToolCall("2", "hide", '"bad"')))
HISTORY = [
    Message("user", (Text("Q"),)),
    CALLS,
    Message("tool", (Text("seen"), IMAGE, Text("more")), tool_call_id="1"),
    Message("tool", (Text("gone"),), tool_call_id="2"),
    Message("user", (Text("And?"),)),
]
TOOL_TEMPLATE = """\
{%- for tool in tools or () %}{{ tool.function.name }}: {{ tool | tojson }}
{% endfor -%}
{%- for message in messages -%}
{{ message.role }}{{ message.name }}{{ message.tool_call_id + ': ' if message.tool_call_id else ': ' }}
{%- for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}
{%- for call in message.tool_calls %}<{{ call.function.name }}>{{ call.function.arguments | tojson }}{% endfor %};
{% endfor -%}"""


def controls_in(renderer: PromptRenderer, ids: list[int]) -> list[str]:
    return [token for token in map(renderer._tokenizer.token, ids) if token in CONTROLS]


def test_history_is_text_for_a_template_without_tools(renderer: PromptRenderer) -> None:
    assert renderer.chat(HISTORY).text == (
        'USER: Q ASSISTANT: I look.\n<tool_call>\n{"name":"show","arguments":{"at":"top"}}\n</tool_call>\n'
        '<tool_call>\n{"name":"hide","arguments":"bad"}\n</tool_call></s>'
        "USER: <image>\n<tool_response>\nseen\nmore\n</tool_response>\n<tool_response>\ngone\n</tool_response>\nAnd? ASSISTANT:"
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_template_renders_history_and_definitions(renderer: PromptRenderer, name: str) -> None:
    prompt = renderer.chat(HISTORY, name, tools=[TOOL], tool_choice="required")
    for text in ('{"name":"show","arguments":{"at":"top"}}', "seen\nmore", "gone", '"description":"Show a \\"place\\""'):
        assert text in prompt.text
    assert prompt.token_ids.count(renderer.image_id) == 1


def test_definitions_follow_the_system_message(renderer: PromptRenderer) -> None:
    chat = [Message("system", (Text("Be brief."),)), Message("user", (Text("Q"),))]
    definition = '{"name":"show","description":"Show a \\"place\\"","parameters":{"type":"object"}}'
    for messages in (chat, chat[1:]):
        text = renderer.chat(messages, tools=[TOOL], tool_choice="named").text
        assert text.startswith("Be brief.\n" if messages is chat else "Call the function below.")
        assert f"{definition} USER: Q ASSISTANT:" in text
    text = renderer.chat(chat[1:], "vicuna_v1", tools=[TOOL]).text
    assert text.startswith(f"{BUILT_IN['vicuna_v1'].system}\nYou can call")


def test_template_that_renders_tools_gets_them_in_openais_shape() -> None:
    renderer = PromptRenderer(model_info(), Template(TOOL_TEMPLATE))
    assert renderer.renders_tools()
    assert not renderer.renders_tools("llava-hf")
    lines = renderer.chat(HISTORY, tools=[TOOL]).text.splitlines()
    name, _, definition = lines[0].partition(": ")
    assert name == "show"
    function = {"name": "show", "description": 'Show a "place"', "parameters": {"type": "object"}}
    assert json.loads(definition) == {"type": "function", "function": function}
    assert lines[2] == 'assistant: I look.<show>{"at": "top"}<hide>"bad";'
    assert lines[3] == "toolshow1: seen<image>more;"
    assert lines[4] == "toolhide2: gone;"
    assert renderer.chat(HISTORY).text.splitlines()[0] == "user: Q;"


PIECES = st.lists(st.text(max_size=5) | st.sampled_from([*CONTROLS, "<", "ima", "ge>", "</", "s>", "s", "image", "\ufdd0"]), max_size=4)


@pytest.mark.parametrize("template", [None, Template(TOOL_TEMPLATE)], ids=["text", "tools"])
@given(text=PIECES.map("".join), name=st.sampled_from(["s", "image", "pad", "unk", "f"]))
def test_no_part_of_a_tool_becomes_a_control_token(template: Template | None, text: str, name: str) -> None:
    renderer = PromptRenderer(model_info(), template)
    schema = json.dumps({"type": "object", "properties": {text: {"description": text}}}, ensure_ascii=False)
    call = ToolCall(text, name, json.dumps({text: text}, ensure_ascii=False))
    chat = [
        Message("user", (Text("Q"),)),
        Message("assistant", (), (call,)),
        Message("tool", (Text(text), IMAGE), tool_call_id=text),
    ]
    prompt = renderer.chat(chat, tools=[Tool(name, text, schema)])
    found = controls_in(renderer, prompt.token_ids)
    assert sorted(found) == sorted(["<s>", "<image>", *(["</s>"] if template is None else [])])


def test_definitions_of_many_characters_are_refused_before_they_are_tokenized(renderer: PromptRenderer) -> None:
    for tools in ([Tool("f", "x" * 500_000)], [Tool("f", parameters=json.dumps({"type": "object", "title": "x" * 500_000}))]):
        with pytest.raises(ContextLengthExceeded):
            renderer.chat(HISTORY, tools=tools)


def test_template_that_cannot_render_a_message_is_a_refusal() -> None:
    renderer = PromptRenderer(model_info(), Template("{{ messages[0].content + 'x' }}{{ tools }}"))
    with pytest.raises(Exception, match="The chat template refuses these messages"):
        renderer.chat(HISTORY)
