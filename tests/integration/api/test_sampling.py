"""Sampling fields, log probabilities and structured output on the real engine."""

import json
import math
import re
from typing import Any

import httpx
import pytest
from helpers.contract import frames
from helpers.requests import MODEL, body, image
from jsonschema import validate
from openai import OpenAI
from openai.types.chat import ChatCompletion

from llava_gateway.demo import CHECKPOINT
from llava_gateway.tokenizer import Tokenizer

GRID = ("red", "blue", "green", "orange")
CHAT = "/v1/chat/completions"
GREETING = "I see no image. I am a small demo model: send me an image and ask me to describe it."
VOCABULARY = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())


def ids(text: str) -> list[int]:
    return VOCABULARY.encode(text, add_special_tokens=False).ids


def ask(client: OpenAI, question: str = "Hello", **fields: Any) -> ChatCompletion:
    """Send a question. `fields`: OpenAI's and vLLM's fields of the request."""
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}], extra_body={"temperature": 0} | fields
    )


def text(client: OpenAI, question: str = "Hello", **fields: Any) -> str:
    return ask(client, question, **fields).choices[0].message.content or ""


def streamed(http: httpx.Client, **fields: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Return the text, the log probabilities and the finish_reason of a stream with one choice."""
    *events, _ = frames(http.post(CHAT, json=body("Hello", stream=True) | fields).text)
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    logprobs = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    return content, logprobs, choices[-1]["finish_reason"]


def test_logprobs_spell_the_answer(client: OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs
    entries = choice.logprobs.content or []
    assert bytes(byte for entry in entries for byte in entry.bytes or []).decode() == choice.message.content == GREETING
    for entry in entries:
        assert entry.token.encode() == bytes(entry.bytes or [])
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # a greedy answer takes the most likely token
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001
        assert [top.logprob for top in entry.top_logprobs] == sorted((top.logprob for top in entry.top_logprobs), reverse=True)


def test_logprobs_without_alternatives(client: OpenAI) -> None:
    choice = ask(client, logprobs=True, max_tokens=3).choices[0]
    assert choice.logprobs
    assert [entry.top_logprobs for entry in choice.logprobs.content or []] == [[], [], []]
    assert ask(client, max_tokens=3).choices[0].logprobs is None


def test_streamed_logprobs_are_the_same(http: httpx.Client) -> None:
    whole = http.post(CHAT, json=body("Hello", logprobs=True, top_logprobs=2)).json()["choices"][0]
    content, logprobs, reason = streamed(http, logprobs=True, top_logprobs=2)
    assert content == whole["message"]["content"]
    assert reason == whole["finish_reason"] == "stop"
    assert [entry["token"] for entry in logprobs] == [entry["token"] for entry in whole["logprobs"]["content"]]
    for streamed_entry, entry in zip(logprobs, whole["logprobs"]["content"], strict=True):
        assert streamed_entry["logprob"] == pytest.approx(entry["logprob"], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_character_of_several_tokens_appears_whole(http: httpx.Client, stream: bool) -> None:
    """The llama takes four tokens. No part of it appears as text, and each token has its own bytes."""
    llama = ids("🦙")
    assert len(llama) == 4
    fields = {"structured_outputs": {"choice": ["🦙🦙"]}, "logprobs": True}
    if stream:
        content, entries, _ = streamed(http, **fields)
    else:
        choice = http.post(CHAT, json=body("Hello", **fields)).json()["choices"][0]
        content, entries = choice["message"]["content"], choice["logprobs"]["content"]
    assert content == "🦙🦙"
    assert [entry["bytes"] for entry in entries] == [[byte] for byte in "🦙🦙".encode()]
    assert {entry["token"] for entry in entries} == {"\ufffd"}


def test_no_delta_holds_half_a_character(http: httpx.Client) -> None:
    *events, _ = frames(http.post(CHAT, json=body("Hello", structured_outputs={"choice": ["Zażółć 🦙 gęślą"]}, stream=True)).text)
    deltas = [choice["delta"].get("content", "") for event in events for choice in json.loads(event)["choices"]]
    assert "".join(deltas) == "Zażółć 🦙 gęślą"
    assert not any("\ufffd" in delta for delta in deltas)


def test_answer_cut_inside_a_character_omits_it(http: httpx.Client) -> None:
    for stream in (False, True):
        fields = {"structured_outputs": {"choice": ["a🦙"]}, "max_tokens": 3}
        if stream:
            content, _, reason = streamed(http, **fields)
        else:
            choice = http.post(CHAT, json=body("Hello") | fields).json()["choices"][0]
            content, reason = choice["message"]["content"], choice["finish_reason"]
        assert (content, reason) == ("a", "length")


def test_logit_bias_forces_and_bans_tokens(client: OpenAI) -> None:
    (token,) = ids("H")
    assert text(client, logit_bias={str(token): 100}, max_tokens=4) == "HHHH"
    see = ids(" see")[0]
    assert " see" not in text(client, logit_bias={str(see): -100}, max_tokens=10)


def test_allowed_token_ids_limit_the_answer(client: OpenAI) -> None:
    assert set(text(client, allowed_token_ids=ids("ab"), max_tokens=8, temperature=1)) <= {"a", "b"}


def test_stop_token_id_ends_the_answer(client: OpenAI) -> None:
    choice = ask(client, stop_token_ids=ids(" demo")).choices[0]
    assert choice.message.content == GREETING.split(" demo")[0]
    assert choice.finish_reason == "stop"


def test_min_tokens_and_ignore_eos_lengthen_the_answer(client: OpenAI) -> None:
    usual = ask(client).usage
    assert usual
    longer = ask(client, min_tokens=usual.completion_tokens + 10, max_tokens=100).usage
    assert longer
    assert longer.completion_tokens > usual.completion_tokens + 10
    on = ask(client, ignore_eos=True, max_tokens=70)
    assert on.usage
    assert on.usage.completion_tokens == 70


def test_bad_words_do_not_appear(client: OpenAI) -> None:
    assert "." not in text(client, bad_words=["."], max_tokens=12)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalty_reduces_repetition(client: OpenAI, name: str) -> None:
    """The answer repeats `ab` or `a`, unless a penalty makes other letters more likely."""
    request: dict[str, Any] = {"allowed_token_ids": ids("abcdefgh"), "max_tokens": 8}
    plain = text(client, **request)
    other = text(client, **request | {name: 2})
    assert len(set(other)) > len(set(plain))


def test_top_k_and_min_p_narrow_the_choice(client: OpenAI) -> None:
    wild: dict[str, Any] = {"temperature": 2, "max_tokens": 20}
    narrow: list[dict[str, Any]] = [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}]
    for fields in narrow:
        assert text(client, seed=3, **wild, **fields) == text(client, seed=4, **wild, **fields) == text(client, max_tokens=20)
    wide: list[dict[str, Any]] = [{"top_k": 0}, {"top_k": -1}, {"top_k": 2**31 - 1}]
    for fields in wide:
        assert text(client, seed=3, **wild, **fields) == text(client, seed=3, **wild)


def test_each_seed_repeats_its_answer(client: OpenAI) -> None:
    answers = set()
    for seed in (-1, 0, 7, 2**40, -(2**63), 2**63 - 1):
        request: dict[str, Any] = {"temperature": 2, "seed": seed, "n": 2, "max_tokens": 20, "allowed_token_ids": ids("abcdefgh")}
        first, second = (ask(client, **request) for _ in range(2))
        assert [choice.message.content for choice in first.choices] == [choice.message.content for choice in second.choices]
        answers |= {choice.message.content for choice in first.choices}
    assert len(answers) >= 5  # torch uses 32 bits of a seed


@pytest.mark.parametrize("field", [{"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"temperature": 1e-9, "n": 2}])
def test_extreme_value_does_not_harm_the_engine(client: OpenAI, field: dict[str, Any]) -> None:
    assert ask(client, **{"temperature": 1, "max_tokens": 5} | field).usage
    assert text(client) == GREETING


@pytest.mark.parametrize("stop", [" small demo", "mall de", ".", "I am a small demo model: send me an image and ask"])
def test_stop_string_across_tokens_does_not_leak(http: httpx.Client, stop: str) -> None:
    """No character of a stop string is sent, although its first letters were in earlier tokens."""
    expected = GREETING.split(stop)[0]
    whole = http.post(CHAT, json=body("Hello", stop=stop)).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (expected, "stop")
    assert streamed(http, stop=stop)[::2] == (expected, "stop")
    kept = streamed(http, stop=stop, include_stop_str_in_output=True)[0]
    assert kept == expected + stop


def test_special_tokens_appear_only_on_request(client: OpenAI) -> None:
    shown = text(client, ignore_eos=True, skip_special_tokens=False, max_tokens=60)
    assert "</s>" in shown
    assert "</s>" not in text(client, ignore_eos=True, max_tokens=60)


SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["color", "count", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
@pytest.mark.parametrize("temperature", [0, 2])
def test_answer_follows_the_json_schema(http: httpx.Client, field: dict[str, Any], temperature: float) -> None:
    asked = body(image(GRID), "Describe this image.") | {"temperature": temperature, "seed": 1} | field
    choice = http.post(CHAT, json=asked).json()["choices"][0]
    validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert choice["finish_reason"] == "stop"
    assert validate(json.loads(streamed(http, **field)[0]), SCHEMA) is None


FORM = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": FORM}}},
        {"structured_outputs": {"json": FORM}},
        {"structured_outputs": {"json": {"$ref": "#/$defs/Form", "$defs": {"Form": FORM}}}},
    ],
)
def test_answer_ends_although_the_schema_does_not_forbid_further_keys(http: httpx.Client, field: dict[str, Any]) -> None:
    """The demo model once added keys until the token limit, as models do in the JSON mode of instructor, outlines and `llm --schema`."""
    choice = http.post(CHAT, json=body("Hello", **field)).json()["choices"][0]
    assert choice["message"]["content"] in ('{"color":"red"}', '{"color":"blue"}')
    assert choice["finish_reason"] == "stop"
    assert streamed(http, **field)[::2] == (choice["message"]["content"], "stop")


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer"}}},
    ],
)
def test_any_json_object_has_an_end(client: OpenAI, field: dict[str, Any]) -> None:
    """The demo model stays within a key, and the next one, for as long as it may."""
    choice = ask(client, **field, max_tokens=3000).choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content or ""), dict)
    quiet = {str(token): -100 for token in range(VOCABULARY.size) if VOCABULARY.token(token) not in ("{", "}")}
    assert json.loads(text(client, **field, logit_bias=quiet)) == {}


def test_structured_answer_may_begin_with_a_space(client: OpenAI) -> None:
    assert text(client, structured_outputs={"choice": [" yes"]}) == " yes"


def test_answer_follows_a_regex_choice_or_grammar(client: OpenAI) -> None:
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", text(client, structured_outputs={"regex": "[0-9]{3}-[a-f]{2}"}, temperature=2))
    assert text(client, structured_outputs={"choice": ["yes", "no"]}, temperature=2) in ("yes", "no")
    assert text(client, structured_outputs={"grammar": 'root ::= "x" root | "y"'}, max_tokens=50).strip("x") in ("y", "")
    assert text(client, structured_outputs={"grammar": 'start: "left" | "right"'}) in ("left", "right")
    assert text(client, response_format={"type": "text"}) == GREETING


EXPENSIVE: list[dict[str, Any]] = [
    {"regex": "(.*){0,50}" * 20},  # xgrammar 0.2.8 hangs at the first token
    {"regex": "(.{0,999}a){0,999}"},
    {"regex": "(a?){500}a{500}"},
    {"regex": "(" * 3000 + ")" * 3000},
    {"regex": "a" * 60_000},
    {"regex": "\x00"},
    {"json": {"allOf": [{"properties": {"a": {"type": "string", "pattern": f"a{i}.*"}}} for i in range(250)]}},  # minutes in llguidance 1.7
    {"json": {"allOf": [{"type": "string", "pattern": f".*a{i}.*"} for i in range(12)]}},
    {"json": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}}},
    {"json": {"$ref": "#"}},
    {"json": {"$ref": "http://127.0.0.1:9/schema"}},
    {"json": {"type": "array", "minItems": 100_000, "items": {"type": "string"}}},
    {"grammar": 'root ::= root root | "a" | ""'},
    {"grammar": 'start: s\ns: s s | "a" | " " | /[a-z]/'},  # each token takes longer than the one before, up to seconds
    {"grammar": 'start: s\ns: s s s | s s | "" | /./'},
    {"grammar": 'root ::= ("a" | "b"){1,1000000}'},
    {"choice": [f"{i}" * 60 for i in range(900)]},
]


@pytest.mark.parametrize("expensive", EXPENSIVE, ids=lambda value: str(value)[:40])
def test_expensive_structured_output_does_not_block_the_next_request(http: httpx.Client, expensive: dict[str, Any]) -> None:
    """The request is answered or refused within a minute, and the next structured output works."""
    answer = http.post(CHAT, json=body("Hello", structured_outputs=expensive, max_tokens=20), timeout=60)
    assert answer.status_code in (200, 400)
    after = http.post(CHAT, json=body("Hello", structured_outputs={"choice": ["yes"]}), timeout=60)
    assert after.json()["choices"][0]["message"]["content"] == "yes"


def test_structured_output_error_is_framed_in_the_stream(http: httpx.Client) -> None:
    """The engine notices only after a hundred characters that the rest of the schema is too large."""
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(600)}}
    first = {"type": "string", "pattern": "^[a-c]{100,200}$"}
    form = {"type": "array", "prefixItems": [first, wide], "minItems": 2, "maxItems": 2}
    *events, error, done = frames(http.post(CHAT, json=body("Hello", structured_outputs={"json": form}, stream=True, max_tokens=400)).text)
    assert len(events) > 64
    assert json.loads(error)["error"]["param"] == "structured_outputs.json"
    assert done == "[DONE]"
