"""Anthropic's answers from deltas, without a server: whole, and as events that add up to the whole."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.anthropic.response import MessageEventRenderer, collect_message, render_usage
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import ChatRequest, Delta, Message, SamplingParams, ToolCallDelta, Usage

BEGIN, REST = ToolCallDelta(0, "", "call_1", "show"), ToolCallDelta(0, '{"at":"top"}')


def stream_of(*deltas: Delta) -> DeltaStream:
    """Return a stream that has ended after these deltas."""
    unused: Any = None
    request = ChatRequest(model="m", messages=(Message("user", ()),), continue_last=True)
    stream = DeltaStream(PreparedRequest(request, unused, unused, "p", [], 0, SamplingParams()), Usage(10, 0, 4, len(deltas)))

    async def end() -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        stream.end(task)

    for delta in deltas:
        stream.push(delta)
    asyncio.run(end())
    return stream


def whole(*deltas: Delta, stop: tuple[str, ...] = ()) -> Any:
    """Return the whole message, after a check that the events add up to it."""
    message = orjson.loads(b"".join(asyncio.run(collect_message(stream_of(*deltas), "m", stop))))
    joined = join(events(*deltas, stop=stop))
    assert joined.pop("id") != message.pop("id")
    assert joined == message
    return message


def events(*deltas: Delta, stop: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    renderer = MessageEventRenderer(stream_of(*deltas), "m", stop)
    return list(parse(b"".join(map(renderer.render_delta, deltas)) + renderer.render_end()))


def parse(stream: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream, each under the name that its `type` has."""
    *frames, rest = stream.decode().split("\n\n")
    assert not rest
    for frame in frames:
        name, data = frame.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        yield value


def join(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that the events add up to. Fail for events in a wrong order."""
    start, ping, *blocks, delta, stop = found
    assert [each["type"] for each in (start, ping, delta, stop)] == ["message_start", "ping", "message_delta", "message_stop"]
    message: dict[str, Any] = start["message"]
    content = message["content"]
    assert content == []
    pieces: list[str] | None = None
    for event in blocks:
        if event["type"] == "content_block_start":
            assert pieces is None
            assert event["index"] == len(content)
            content.append(event["content_block"])
            pieces = []
        elif event["type"] == "content_block_delta":
            assert pieces is not None
            assert event["index"] == len(content) - 1
            kind = event["delta"]["type"]
            assert kind == {"text": "text_delta", "tool_use": "input_json_delta"}[content[-1]["type"]]
            pieces.append(event["delta"]["text" if kind == "text_delta" else "partial_json"])
        else:
            assert event == {"type": "content_block_stop", "index": len(content) - 1}
            assert pieces is not None
            if content[-1]["type"] == "text":
                content[-1]["text"] = "".join(pieces)
            else:
                content[-1]["input"] = json.loads("".join(pieces) or "{}")
            pieces = None
    assert pieces is None
    ends: dict[str, Any] = delta["delta"] | {"usage": message["usage"] | delta["usage"]}
    return message | ends


def test_text_is_one_block_and_empty_pieces_have_no_event() -> None:
    deltas = (Delta(0, "", 1), Delta(0, "Hel", 1), Delta(0, "lo", 1), Delta(0, "", 1, "stop"))
    message = whole(*deltas)
    assert message["content"] == [{"type": "text", "text": "Hello", "citations": None}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "m")
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert [event["type"] for event in events(*deltas)].count("content_block_delta") == 2


def test_answer_without_text_has_no_block() -> None:
    assert whole(Delta(0, "", 1, "length"))["content"] == []


def test_cached_tokens_are_not_counted_twice() -> None:
    usage = render_usage(Usage(prompt_tokens=600, image_tokens=576, cached_tokens=400, completion_tokens=9), 9)
    assert usage == {"input_tokens": 200, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 400, "output_tokens": 9}


def test_stream_counts_the_prompt_at_its_beginning_and_the_answer_at_its_end() -> None:
    start, *_, delta, _ = events(Delta(0, "Hello", 1, "stop"))
    assert (start["message"]["usage"]["input_tokens"], start["message"]["usage"]["output_tokens"]) == (6, 0)
    assert (delta["usage"]["input_tokens"], delta["usage"]["output_tokens"]) == (6, 1)


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (Delta(0, "x", 1, "stop"), "end_turn", None),
        (Delta(0, "x", 1, "length"), "max_tokens", None),
        (Delta(0, "x", 1, "stop", "END"), "stop_sequence", "END"),
        (Delta(0, "x", 1, "stop", "###"), "end_turn", None),
        (Delta(0, "x", 1, "stop", 2), "end_turn", None),
        (Delta(0, "", 1, "tool_calls", tool_calls=(BEGIN, REST)), "tool_use", None),
        (Delta(0, "", 1, "stop", tool_calls=(BEGIN, REST)), "tool_use", None),
        (Delta(0, "", 1, "length", tool_calls=(BEGIN, REST)), "max_tokens", None),
    ],
)
def test_stop_reason_says_why_the_answer_ended(last: Delta, reason: str, sequence: str | None) -> None:
    message = whole(last, stop=("END",))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_calls_follow_the_text_in_blocks_of_their_own() -> None:
    other = (ToolCallDelta(1, "", "call_2", "paint"), ToolCallDelta(1, "{}"))
    message = whole(Delta(0, "Look: ", 1), Delta(0, "", 1, tool_calls=(BEGIN,)), Delta(0, "", 1, "tool_calls", tool_calls=(REST, *other)))
    assert message["content"] == [
        {"type": "text", "text": "Look: ", "citations": None},
        {"type": "tool_use", "id": "toolu_1", "name": "show", "input": {"at": "top"}},
        {"type": "tool_use", "id": "toolu_2", "name": "paint", "input": {}},
    ]


def test_end_of_a_call_comes_before_the_text_that_was_joined_to_it() -> None:
    """A slow reader gets a joined delta, whose text follows the call that it ends."""
    joined = Delta(
        0, "Done.", 2, "stop", tool_calls=(ToolCallDelta(0, '"top"}'), ToolCallDelta(1, "", "call_2", "f"), ToolCallDelta(1, "{}"))
    )
    message = join(events(Delta(0, "", 1, tool_calls=(BEGIN, ToolCallDelta(0, '{"at":'))), joined))
    assert [block.get("text") or block["input"] for block in message["content"]] == [{"at": "top"}, "Done.", {}]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ('{"at":"top"}', {"at": "top"}),
        ('{"at":"top","size":[1,2', {"at": "top", "size": [1, 2]}),
        ('{"at":"to', {}),
        ("", {}),
        ("[1]", {}),
        ("nonsense", {}),
        ('{"n":123456789012345678901234567890}', {"n": 123456789012345678901234567890}),
        ('{"n":123456789012345678901234567890,"m":', {}),
    ],
)
def test_input_of_a_call_that_was_cut_off_is_still_an_object(arguments: str, found: Any) -> None:
    call = Delta(0, "", 1, "length", tool_calls=(BEGIN, ToolCallDelta(0, arguments)))
    message = json.loads(b"".join(asyncio.run(collect_message(stream_of(call), "m", ()))))
    assert message["content"][0]["input"] == found


PIECES = st.lists(st.text(max_size=5) | st.none(), max_size=8)


@given(PIECES)
def test_events_add_up_to_the_whole_answer(pieces: list[str | None]) -> None:
    """`pieces`: texts, and None for a call."""
    deltas, calls = [], 0
    for piece in pieces:
        if piece is None:
            first, rest = ToolCallDelta(calls, "", f"call_{calls}", "show"), ToolCallDelta(calls, '{"at":"top"}')
            deltas += [Delta(0, "", 1, tool_calls=(first,)), Delta(0, "", 1, tool_calls=(rest,))]
            calls += 1
        else:
            deltas.append(Delta(0, piece, 1))
    message = join(events(*deltas, Delta(0, "", 1, "stop")))
    assert "".join(block.get("text", "") for block in message["content"]) == "".join(piece or "" for piece in pieces)
    assert sum(block["type"] == "tool_use" for block in message["content"]) == calls
