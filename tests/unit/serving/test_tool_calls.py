"""Calls of tools are found in an answer's text, however the engine cuts the text into pieces."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.serving.tool_calls import FORMATS, MAX_HELD, CallFormat, ToolCallParser
from llava_gateway.types import ChatRequest, Delta, FinishReason, Tool, ToolChoice

TOOLS = (Tool("look"), Tool("get.weather-2"))
Answer = tuple[str, list[tuple[str, str]], FinishReason | None]
"""The text, the name and arguments of each call, and the finish reason."""


def parse(
    pieces: list[str],
    call_format: CallFormat = FORMATS["hermes"],
    reason: FinishReason = "stop",
    *,
    choice: ToolChoice = "auto",
    parallel: bool = True,
) -> Answer:
    """Return an answer that arrives in pieces, and check that each call begins with its id, its name and no arguments."""
    request = ChatRequest(model="m", messages=(), tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel)
    parser = ToolCallParser(request, call_format)
    text = ""
    calls: list[tuple[str, str]] = []
    ids = set()
    last: FinishReason | None = None
    for number, piece in enumerate(pieces, 1):
        delta = parser.parse(Delta(0, piece, 1, reason if number == len(pieces) else None))
        text += delta.text
        for call in delta.tool_calls:
            if call.id:
                assert call.index == len(calls)
                assert call.name
                assert call.arguments == ""
                ids.add(call.id)
                calls.append((call.name, ""))
            else:
                assert call.index == len(calls) - 1
                assert call.name is None
                calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
        last = delta.finish_reason
    assert len(ids) == len(calls)
    return text, calls, last


def cut(text: str, places: set[int]) -> list[str]:
    """Return the text in pieces."""
    edges = [0, *sorted(place for place in places if 0 < place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def call(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


LOOK = call("look", {"at": 'a "}<tool_call>{" sign', "deep": [{"x": {}}]})
WEATHER = call("get.weather-2", {})
ARGUMENTS = json.dumps(json.loads(LOOK)["arguments"])
ANSWERS = [
    ("hermes", f"<tool_call>\n{LOOK}\n</tool_call>", "", 1),
    ("hermes", f" \n<tool_call>{LOOK}</tool_call>\n<tool_call>{WEATHER}</tool_call>\n", "", 2),
    ("hermes", f"Let me look.\n<tool_call>\n{LOOK}\n</tool_call>", "Let me look.\n", 1),
    ("hermes", "No call, just <tool and {braces}.", "No call, just <tool and {braces}.", 0),
    ("hermes", "  a < b ", "  a < b ", 0),
    ("llama3_json", LOOK.replace("arguments", "parameters"), "", 1),
    ("llama3_json", f"<|python_tag|>{LOOK}; {WEATHER}", "", 2),
    ("llama3_json", "Just text {}", "Just text {}", 0),
    ("llama3_json", '{"a": "an object that is no call"}', '{"a": "an object that is no call"}', 0),
    ("mistral", f"[TOOL_CALLS] [{LOOK}, {WEATHER}]", "", 2),
    ("mistral", f"I look: [TOOL_CALLS][{LOOK}]", "I look: ", 1),
    ("list", f"[{LOOK},{WEATHER}]", "", 2),
    ("list", f" [ {LOOK} ]", "", 1),
]


@pytest.mark.parametrize(("name", "answer", "text", "calls"), ANSWERS)
def test_calls_are_found_however_the_answer_is_cut(name: Any, answer: str, text: str, calls: int) -> None:
    expected = text, [("look", ARGUMENTS), ("get.weather-2", "{}")][:calls], "tool_calls" if calls else "stop"
    assert parse([answer], FORMATS[name]) == expected
    assert parse(list(answer), FORMATS[name]) == expected
    for place in range(1, len(answer)):
        assert parse(cut(answer, {place}), FORMATS[name]) == expected


PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "<|python_tag|>", LOOK, WEATHER, "\n", " " * 600, "text", "é🙂"),
        *("{", "}", '"', "\\", "[", "]", ",", ";", '{"name": "look", "arguments": {', '{"name": "none", "arguments": {}}'),
        *('{"arguments": {"a": 1}, "name": "look"}', '{"name":"look"}', '{"name": "look", "arguments": "{\\"a\\": 1}"}', '"x": 1}'),
        *("a" * (MAX_HELD + 5), '{"' + "b" * MAX_HELD),
    ]
)


@given(st.sampled_from(sorted(FORMATS)), st.lists(PIECES, max_size=12).map("".join), st.sets(st.integers(0, 3000)), st.booleans())
def test_any_answer_is_the_same_however_it_is_cut(name: Any, answer: str, places: set[int], parallel: bool) -> None:
    whole = parse([answer], FORMATS[name], parallel=parallel)
    assert parse(cut(answer, places), FORMATS[name], parallel=parallel) == whole
    assert parse(list(answer) or [""], FORMATS[name], parallel=parallel) == whole
    assert parse([*cut(answer, places), ""], FORMATS[name], parallel=parallel) == whole


@given(st.lists(PIECES, max_size=12).map("".join), st.sets(st.integers(0, 3000)))
def test_text_without_a_marker_is_unchanged(answer: str, places: set[int]) -> None:
    answer = answer.replace("<tool_call>", "")
    assert parse(cut(answer, places), FORMATS["hermes"]) == (answer, [], "stop")


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>',) * 2 + ([],),
        ("<tool_call>look()</tool_call> then",) * 2 + ([],),
        ('<tool_call>{"name": "look", "arguments": {"a": 1}\n</tool_call> then', " then"[1:], [("look", '{"a": 1}')]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "look"}</tool_call>', "", [("look", '{"a":1}')]),
        ('<tool_call>{"name": "look", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("look", '{"a":1}')]),
        ('<tool_call>{"name": "look"}</tool_call>', "", [("look", "{}")]),
        ('<tool_call>{"name": "look", "arguments": {"a": 1}, "id": {"b": "}"}}</tool_call>', "", [("look", '{"a": 1}')]),
    ],
)
def test_malformed_call_of_a_model_is_repaired_or_stays_text(answer: str, text: str, calls: list[tuple[str, str]]) -> None:
    expected = text, calls, "tool_calls" if calls else "stop"
    assert parse([answer]) == expected
    assert parse(list(answer)) == expected


@pytest.mark.parametrize("end", range(1, len(f"<tool_call>\n{WEATHER}\n</tool_call>")))
def test_answer_that_is_cut_off_loses_no_text_and_is_no_finished_call(end: int) -> None:
    answer = f"<tool_call>\n{LOOK}\n</tool_call>"[:end]
    text, calls, reason = parse([answer], reason="length")
    assert reason == "length"
    assert bool(text) != bool(calls)
    assert text in ("", answer)


def test_call_that_is_cut_by_a_stop_string_does_not_finish_with_tool_calls() -> None:
    assert parse(['<tool_call>{"name": "look", "arguments": {"a'])[2] == "stop"


def test_list_that_is_cut_off_shows_no_text() -> None:
    for end in range(len(f"[{LOOK}]")):
        assert parse([f"[{LOOK}]"[:end]], FORMATS["list"], "length")[0] == ""


def test_answer_to_a_named_tool_is_its_arguments() -> None:
    assert parse([" ", " {", '"a":', "1}"], FORMATS["list"], choice="named") == ("", [("look", '{"a":1}')], "stop")
    assert parse(["", ""], FORMATS["list"], "length", choice="named") == ("", [("look", "")], "length")


def test_second_call_is_left_out_without_parallel_calls() -> None:
    answer = f"<tool_call>{WEATHER}</tool_call><tool_call>{LOOK}</tool_call>"
    assert parse(list(answer), parallel=False) == ("", [("get.weather-2", "{}")], "tool_calls")


def test_arguments_are_streamed_before_the_call_is_whole() -> None:
    request = ChatRequest(model="m", messages=(), tools=TOOLS)
    parser = ToolCallParser(request, FORMATS["hermes"])
    assert parser.parse(Delta(0, "<tool_call>\n", 1)).tool_calls == ()
    first = parser.parse(Delta(0, '{"name":"look","arguments":{"a', 1))
    assert [(call.name, call.arguments) for call in first.tool_calls] == [("look", ""), (None, '{"a')]
    assert [call.arguments for call in parser.parse(Delta(0, "bc", 1)).tool_calls] == ["bc"]


@pytest.mark.parametrize(
    "unit", ["<tool_call>{", "<tool_call>{}", "<tool_call>", '<tool_call>{"name":"look"}', "{", " ", '"', "<tool_call> ", "<"]
)
def test_work_for_hostile_text_grows_with_its_length(unit: str) -> None:
    """A text of 300,000 characters takes a fraction of a second; work that grows with the square would take minutes."""
    text = unit * (300_000 // len(unit)) + "}" * 10_000
    for answer in (text, f"<tool_call>{text}"):
        start = time.thread_time()
        parse([answer])
        parse([answer[at : at + 200] for at in range(0, len(answer), 200)])
        assert time.thread_time() - start < 10


def test_choices_have_calls_of_their_own() -> None:
    parser = ToolCallParser(ChatRequest(model="m", messages=(), tools=TOOLS), FORMATS["hermes"])
    deltas = [parser.parse(Delta(index, f"<tool_call>{WEATHER}</tool_call>", 9, "stop")) for index in (0, 1)]
    assert [[call.index for call in delta.tool_calls] for delta in deltas] == [[0, 0], [0, 0]]
    assert deltas[0].tool_calls[0].id != deltas[1].tool_calls[0].id
