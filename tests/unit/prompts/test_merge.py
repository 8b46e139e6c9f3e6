"""Consecutive messages of one role become one turn, without a loss or a change of order."""

from itertools import pairwise

from helpers.prompts import IMAGE
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.prompts.merge import merge_turns
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.types import ImageUrl, Message, Role, Text, ToolCall

OTHER = ImageUrl("data:,other", "image")
CONTENT = st.lists(st.sampled_from([Text("a"), Text("b"), IMAGE, OTHER]), max_size=3).map(tuple)
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


def test_image_and_question_as_two_messages_are_one_turn(renderer: PromptRenderer) -> None:
    apart = [Message("user", (IMAGE,)), Message("user", (Text("What?"),))]
    assert renderer.chat(apart) == renderer.chat([Message("user", (IMAGE, Text("What?")))])


def test_texts_that_meet_are_joined_by_a_line_break() -> None:
    chat = [
        Message("user", (Text("a"), Text("b"))),
        Message("user", (Text("c"),)),
        Message("user", (IMAGE, Text("d"))),
        Message("user", ()),
    ]
    assert merge_turns(chat) == [Message("user", (Text("a"), Text("b\nc"), IMAGE, Text("d")))]


def test_tool_calls_of_merged_messages_are_kept_and_results_stay_separate() -> None:
    call, other = ToolCall("1", "f", "{}"), ToolCall("2", "g", "{}")
    calls = [Message("assistant", (Text("a"),)), Message("assistant", (), (call,)), Message("assistant", (), (other,))]
    results = [Message("tool", (Text("x"),), tool_call_id="1"), Message("tool", (Text("y"),), tool_call_id="2")]
    assert merge_turns([*calls, *results]) == [Message("assistant", (Text("a"),), (call, other)), *results]


def test_alternating_chat_is_not_copied() -> None:
    chat = [Message("user", (Text("a"),)), Message("assistant", (Text("b"),)), Message("user", (Text("c"),))]
    assert merge_turns(chat) is chat


@given(st.lists(st.builds(Message, st.sampled_from(ROLES), CONTENT), max_size=8))
def test_merging_loses_no_part_and_leaves_no_neighbours(chat: list[Message]) -> None:
    merged = merge_turns(chat)
    assert all(first.role != second.role or first.role == "tool" for first, second in pairwise(merged))

    def parts(messages: list[Message]) -> list[object]:
        """Return the images and letters of each role, in order."""
        found: list[object] = []
        for message in messages:
            for part in message.content:
                found += [(message.role, letter) for letter in part.text.split()] if isinstance(part, Text) else [(message.role, part)]
        return found

    assert parts(list(merged)) == parts(chat)
