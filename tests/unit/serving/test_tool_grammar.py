"""Every answer that a grammar of tools allows is a call, with arguments that are valid against the tool's JSON Schema."""

import json
from typing import Any

import llguidance
import pytest
from helpers.scripted_engine import compile_grammar, draw_answer, grammar_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llava_gateway.engine.vllm.grammar_worker import error
from llava_gateway.errors import InvalidRequest
from llava_gateway.serving.tool_calls import FORMATS, ToolCallParser
from llava_gateway.serving.tool_grammar import MAX_CALLS, MAX_LENGTH, arguments_schema, hold_to_calls, hold_to_text_or_calls
from llava_gateway.types import ChatRequest, Delta, SamplingParams, StructuredOutput, Tool, ToolChoice


def allows(structured_output: StructuredOutput, answer: str) -> bool:
    matcher = llguidance.LLMatcher(grammar_tokenizer(), compile_grammar(structured_output), log_level=0)
    assert not matcher.get_error()
    tokens = grammar_tokenizer().tokenize_str(answer)
    return bool(matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting())


def request(*tools: Tool, choice: ToolChoice = "required", parallel: bool = True, **sampling: Any) -> ChatRequest:
    params = SamplingParams(**sampling)
    return ChatRequest(model="m", messages=(), tools=tools, tool_choice=choice, parallel_tool_calls=parallel, sampling=params)


def held(asked: ChatRequest) -> StructuredOutput:
    hold = hold_to_text_or_calls if asked.tool_choice == "auto" else hold_to_calls
    structured_output = hold(asked, asked.sampling).structured_output
    assert structured_output
    return structured_output


def tool(name: str, schema: Any) -> Tool:
    return Tool(name, parameters=json.dumps(schema), param="tools[0].function.parameters")


def calls_in(asked: ChatRequest, answer: str) -> list[tuple[str, Any]]:
    parser = ToolCallParser(asked, FORMATS["hermes" if asked.tool_choice == "auto" else "list"])
    delta = parser.parse(Delta(0, answer, 1, "stop"))
    assert delta.text == ""
    found: list[tuple[str, str]] = []
    for piece in delta.tool_calls:
        if piece.name:
            found.append((piece.name, ""))
        found[-1] = (found[-1][0], found[-1][1] + piece.arguments)
    return [(name, json.loads(arguments)) for name, arguments in found]


LEAVES = st.sampled_from(
    [
        *({"type": "integer", "minimum": 0, "maximum": 99}, {"type": "boolean"}, {"enum": ["red", 'a "quote"', 5, None]}),
        *({"const": "}]</tool_call>"}, {"type": "string", "maxLength": 3}, {"type": "null"}, {"$ref": "#/$defs/Leaf"}),
        *({"type": ["integer", "null"], "minimum": 0, "maximum": 9}, {"type": "string", "pattern": "^[a-c]{2}$"}),
    ]
)
NAMES = st.sampled_from(["a", "b", "name", "arguments", "$ref", "properties", "é", "<tool_call>", "type"])


def objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def schema(properties: dict[str, Any], required: list[str], extra: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": [name for name in required if name in properties], **extra}

    return st.builds(
        schema,
        st.dictionaries(NAMES, children, max_size=3),
        st.lists(NAMES, unique=True),
        st.sampled_from([{}, {"title": "T", "description": "D"}, {"additionalProperties": False}]),
    )


# An `$id` inside would be the base of the references there, and they would find no `$defs`.
IDS = st.sampled_from([{}, {"$id": "x", "$schema": "http://x"}])
SCHEMAS = objects(
    st.recursive(
        LEAVES,
        lambda children: (
            objects(children)
            | st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, children)
            | st.builds(lambda first, second: {"anyOf": [first, second]}, children, children)
        ),
        max_leaves=5,
    )
)
ROOTS = st.builds(lambda schema, ids: schema | ids | {"$defs": {"Leaf": {"enum": ["leaf"]}}}, SCHEMAS, IDS)
TOOLS = st.lists(ROOTS, min_size=1, max_size=3).map(lambda schemas: [tool(f"f.{at}-x", schema) for at, schema in enumerate(schemas)])


@given(TOOLS, st.sampled_from(["auto", "required", "named"]), st.booleans(), st.integers(0, 1 << 30))
def test_every_call_parses_and_validates(tools: list[Tool], choice: ToolChoice, parallel: bool, seed: int) -> None:
    asked = request(*(tools[:1] if choice == "named" else tools), choice=choice, parallel=parallel)
    structured_output = held(asked)
    pieces = draw_answer(structured_output, seed)
    answer = "".join(pieces or ())
    if pieces is None or (choice == "auto" and not answer.lstrip().startswith("<tool_call>")):
        return
    calls = calls_in(asked, answer)
    assert len(calls) == 1 if not parallel or choice == "named" else len(calls) >= 1
    for name, arguments in calls:
        (called,) = (each for each in tools if each.name == name)
        schema = json.loads(called.parameters)
        schema.pop("$id", None)
        schema.pop("$schema", None)
        Draft202012Validator(schema).validate(arguments)


@given(TOOLS, st.sampled_from(["auto", "required"]))
def test_grammar_passes_the_check_of_formats(tools: list[Tool], choice: ToolChoice) -> None:
    structured_output = held(request(*tools, choice=choice))
    assert error(grammar_tokenizer(), False, structured_output.kind, str(structured_output.spec)) == ""


RECURSIVE = {
    "type": "object",
    "properties": {"value": {"$ref": "#/definitions/Value"}, "next": {"$ref": "#"}, "$ref": {"type": "boolean"}},
    "required": ["value"],
    "definitions": {"Value": {"enum": ["v"], "default": {"$ref": "#"}}},
}


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
def test_references_survive_in_the_grammar(choice: ToolChoice) -> None:
    asked = request(tool("other", {}), tool("f", RECURSIVE), choice=choice)
    if choice == "named":
        asked = request(tool("f", RECURSIVE), choice=choice)
    arguments = '{"value":"v","next":{"value":"v","$ref":true}}'
    for wrong in (False, True):
        text = arguments.replace('"v"', '"w"') if wrong else arguments
        call = f'{{"name":"f","arguments":{text}}}'
        answer = {"named": text, "required": f"[{call}]", "auto": f"<tool_call>\n{call}\n</tool_call>"}[choice]
        assert allows(held(asked), answer) != wrong


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    inner = {"properties": {"a": {"const": 1}}}
    schema = {"type": "object", "properties": {"x": inner | {"type": "object"}, "open": {"type": "object", "additionalProperties": True}}}
    named = held(request(tool("f", schema), choice="named"))
    assert allows(named, '{"x":{"a":1}}')
    assert not allows(named, '{"x":{"b":1}}')
    assert allows(named, '{"open":{"b":1}}')


OTHER = {"properties": {"b": {"const": 2}}}
PART = {"type": "object", "properties": {"a": {"const": 1}}}


@pytest.mark.parametrize(
    "composed",
    [
        {"allOf": [PART, OTHER]},
        {"allOf": [{"$ref": "#/$defs/Part"}, OTHER], "$defs": {"Part": PART}},
        {"anyOf": [OTHER], "properties": {"a": {"const": 1}}},
        {"$ref": "#/$defs/Part", "properties": {"b": {"const": 2}}, "$defs": {"Part": PART}},
    ],
)
def test_parts_of_a_composed_object_do_not_exclude_each_other(composed: dict[str, Any]) -> None:
    named = held(request(tool("f", composed | {"type": "object", "required": ["a", "b"]}), choice="named"))
    assert allows(named, '{"a":1,"b":2}') or allows(named, '{"b":2,"a":1}')


def test_tool_without_parameters_has_no_arguments_and_an_empty_schema_allows_any_object() -> None:
    none = held(request(Tool("f"), choice="named"))
    assert allows(none, "{}")
    assert not allows(none, '{"a":1}')
    anything = held(request(tool("f", {}), choice="named"))
    assert allows(anything, '{"a":[1]}')
    assert not allows(anything, "[]")


def test_calls_are_bounded_and_at_most_one_without_parallel_calls() -> None:
    call = '{"name":"f","arguments":{}}'
    several = held(request(Tool("f")))
    assert allows(several, f"[{call},{call}]")
    assert not allows(several, "[]")
    assert not allows(several, f"[{','.join([call] * (MAX_CALLS + 1))}]")
    assert not allows(held(request(Tool("f"), parallel=False)), f"[{call},{call}]")


def test_auto_is_text_or_calls() -> None:
    either = held(request(tool("f", {"type": "object", "properties": {}}), choice="auto"))
    call = '<tool_call>\n{"name":"f","arguments":{}}\n</tool_call>'
    for answer in ("Hello", " I see <b>", "<tool", "é🙂\n", call, f" {call}\n{call}"):
        assert allows(either, answer), answer
    for answer in ("<tool_call>", "<tool_call>\nfoo", f"{call} and text", call.replace('"f"', '"g"')):
        assert not allows(either, answer), answer


def test_auto_with_a_schema_for_the_text_is_json_or_calls() -> None:
    schema = StructuredOutput("json", '{"type":"object","properties":{"a":{"const":1}}}', "response_format")
    either = held(request(Tool("f"), choice="auto", structured_output=schema))
    assert allows(either, '{"a":1}')
    assert allows(either, '<tool_call>\n{"name":"f","arguments":{}}\n</tool_call>')
    assert not allows(either, "text")


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize(("sampling", "param"), [({"min_tokens": 2}, "min_tokens"), ({"ignore_eos": True}, "ignore_eos")])
def test_contradictory_sampling_is_refused(choice: ToolChoice, sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        held(request(Tool("f"), choice=choice, **sampling))
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("choice", "kind", "spec"), [("required", "json", "{}"), ("named", "choice", ("a",)), ("auto", "regex", "a"), ("auto", "json", "[")]
)
def test_other_structured_output_is_refused(choice: ToolChoice, kind: Any, spec: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        held(request(Tool("f"), choice=choice, structured_output=StructuredOutput(kind, spec, "structured_outputs")))
    assert refusal.value.param == "structured_outputs"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_schemas_that_are_too_long_together_are_refused(choice: ToolChoice) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x" * (MAX_LENGTH // 2)]}}}
    with pytest.raises(InvalidRequest, match="send fewer tools"):
        held(request(tool("f", schema), tool("g", schema), choice=choice))


@pytest.mark.parametrize("schema", [{"allOf": 5}, {"anyOf": "x"}, {"properties": []}, {"items": 5}, {"$ref": 5}, {"allOf": {}}])
def test_schema_that_is_none_is_left_to_the_check_of_formats(schema: Any) -> None:
    assert arguments_schema(tool("f", schema))["type"] == "object"


def test_stop_strings_do_not_cut_a_call() -> None:
    asked = request(Tool("f"), stop=("}",), stop_token_ids=(5,))
    assert hold_to_calls(asked, asked.sampling).stop == ()
    assert hold_to_calls(asked, asked.sampling).stop_token_ids == ()
