"""Schemas that close their objects: answers that a grammar allows satisfy the client's schema, and have no keys that it does not list."""

import json
import random
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.structured_output.backend_guidance import process_for_additional_properties

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.closed_schema import ANY_OBJECT, close_objects
from llava_gateway.engine.vllm.structured_outputs import close_format
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import StructuredOutput

pytestmark = pytest.mark.slow

TOKENIZER = llguidance.LLTokenizer((CHECKPOINT / "tokenizer.json").read_text())
A = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"]}
C = {"properties": {"c": {"type": "null"}}, "required": ["c"]}
LEAVES: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, {"enum": ["red", "blue"]}, {"const": 7}, {"type": "integer", "minimum": 0, "maximum": 20}]
)


def objects(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of objects: with keys of their own, from the parts of an `allOf`, or with alternatives."""

    def listing(keys: str) -> st.SearchStrategy[dict[str, Any]]:
        properties = st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=3)
        return properties.flatmap(
            lambda given: st.lists(st.sampled_from(sorted(given)), unique=True).map(
                lambda required: {"type": "object", "properties": given, "required": required}
            )
        )

    return (
        listing("abc")
        | st.tuples(listing("abc"), listing("def")).map(lambda parts: {"type": "object", "allOf": list(parts)})
        | st.tuples(listing("abc"), listing("def")).map(lambda parts: parts[0] | {"allOf": [parts[1]]})
        | st.tuples(listing("ab"), listing("cd"), listing("ef")).map(lambda parts: parts[0] | {"anyOf": list(parts[1:])})
        | st.tuples(listing("ab"), listing("cd")).map(lambda parts: {"anyOf": list(parts)})
    )


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = inner.map(lambda items: dict[str, Any]({"type": "array", "items": items, "maxItems": 3}))
    return objects(inner) | arrays


SCHEMAS = objects(st.recursive(LEAVES, nested, max_leaves=6))


def draw(schema: str, seed: int, tokens: int = 600) -> str:
    """Return a document that a random walk through the grammar of a schema has written."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    assert not llguidance.LLMatcher.validate_grammar(grammar, None)
    matcher = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)
    generator, written = random.Random(seed), []
    for _ in range(tokens):
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(TOKENIZER.vocab_size) if mask[token // 8] >> token % 8 & 1]
        if matcher.is_stopped() or not allowed:
            break
        token = TOKENIZER.eos_token if TOKENIZER.eos_token in allowed and generator.random() < 0.5 else generator.choice(allowed)
        if token == TOKENIZER.eos_token:
            break
        matcher.consume_token(token)
        written.append(token)
    return TOKENIZER.decode_str(written)


def keys_in(value: Any) -> set[str]:
    """Return the keys of all objects within a JSON value."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_in, value.values()))
    return set().union(*map(keys_in, value)) if isinstance(value, list) else set()


@given(SCHEMAS, st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_drawn_documents_satisfy_the_schema_and_have_no_other_keys(schema: dict[str, Any], seed: int) -> None:
    closed = close_objects(json.dumps(schema))
    assert process_for_additional_properties(closed) == json.loads(closed), "vLLM would close parts of compositions"
    written = json.loads(draw(closed, seed))
    jsonschema.validate(written, schema)
    assert keys_in(written) <= set("abcdef")


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"type": "object", **A}, [{"a": 1}], [{"a": 1, "b": "x"}]),
        ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
        ({"type": "object"}, [{}, {"anything": 1}], []),
        ({"type": "object", "additionalProperties": True, **A}, [{"a": 1, "z": 2}], []),
        ({"type": "object", "additionalProperties": {"type": "null"}, **A}, [{"a": 1, "z": None}], [{"a": 1, "z": 1}]),
        ({"type": "object", "patternProperties": {"^k": {"type": "null"}}}, [{"k1": None}], [{"z": None}]),
        ({"type": "object", "properties": {"a": {}}, "required": ["a", "z"]}, [{"a": 1, "z": 1}], [{"a": 1, "z": 1, "y": 1}]),
        ({"allOf": [A, B]}, [{"a": 1, "b": "x"}], [{"a": 1}, {"a": 1, "b": "x", "c": None}]),
        ({**A, "anyOf": [B, C]}, [{"a": 1, "b": "x"}, {"a": 1, "c": None}], [{"a": 1}, {"a": 1, "b": "x", "c": None}]),
        ({"anyOf": [A, B]}, [{"a": 1}, {"b": "x"}], [{"a": 1, "b": "x"}]),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": A}}, [{"a": 1}], [{"a": 1, "b": "x"}]),
        ({"$ref": "#/components/schemas/A", "components": {"schemas": {"A": A}}}, [{"a": 1}], [{"a": 1, "b": "x"}]),
        ({"$ref": "#/$defs/A", **B, "$defs": {"A": A}}, [{"a": 1, "b": "x"}], [{"a": 1, "b": "x", "c": None}]),
        ({"items": A}, [[{"a": 1}]], [[{"a": 1, "b": 2}]]),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, [{"next": {"next": {}}}], [{"next": {"a": {}}}]),
        ({"enum": [{"properties": {}}]}, [{"properties": {}}], [{"properties": {}, "additionalProperties": False}]),
    ],
)
def test_closed_schema_allows_listed_keys_only(schema: dict[str, Any], allowed: list[Any], refused: list[Any]) -> None:
    closed = close_objects(json.dumps(schema))
    check = jsonschema.Draft202012Validator(json.loads(closed))
    for value in allowed:
        assert check.is_valid(value), (value, closed)
    for value in refused:
        assert not check.is_valid(value), (value, closed)
    assert process_for_additional_properties(closed) == json.loads(closed)


@pytest.mark.parametrize(
    "text", ["no json", "[", '{"items":' * 5000, "true", "[1]", '{"$ref":"#/x/y","allOf":3,"properties":[]}', '{"required":3}']
)
def test_text_that_is_no_schema_is_left_to_the_compiler(text: str) -> None:
    assert close_objects(text).replace(" ", "") == text.replace(" ", "")


WIDE: list[dict[str, Any]] = [
    {"$defs": {"a": {"anyOf": [{}] * 8000}}, "prefixItems": [{"allOf": [{}, {"$ref": "#/$defs/a"}]}] * 800},
    {"anyOf": [{"properties": {f"k{i}": {}}} for i in range(2000)], "properties": {f"j{i}": {} for i in range(1000)}},
    {"$defs": {"a": {"anyOf": [{}] * 8000}}, "properties": {}, "anyOf": [{"$ref": "#/$defs/a"}] * 800},
]


@pytest.mark.parametrize("schema", WIDE)
def test_compositions_that_multiply_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="too complicated") as refused:
        close_format(StructuredOutput("json", json.dumps(schema), "here"))
    assert refused.value.param == "here"


@pytest.mark.parametrize("seed", range(5))
def test_any_object_is_a_json_object_with_bounds(seed: int) -> None:
    assert close_objects(ANY_OBJECT) == ANY_OBJECT
    assert isinstance(json.loads(draw(ANY_OBJECT, seed)), dict)
    for value in ({}, {"Top left": "red", "n": [1, {"a": None, "b": [True, 1.5e3]}], "ż": "x" * 2000}):
        jsonschema.validate(value, json.loads(ANY_OBJECT))
