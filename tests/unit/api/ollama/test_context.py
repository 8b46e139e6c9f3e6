"""The field `context`: what it keeps of a conversation, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.ollama.context import MAX_CONTEXT, decode_context, encode_context
from llava_gateway.api.ollama.request import GenerateBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import ImageBase64, Message, Text

ROLES = st.sampled_from(["system", "user", "assistant"])


def message(role: str, text: str) -> Message:
    return Message(role, (Text(text),))  # type: ignore[arg-type]


@given(st.lists(st.builds(message, ROLES, st.text(max_size=20)), max_size=4), st.text(max_size=20))
def test_context_brings_the_conversation_back(messages: list[Message], answer: str) -> None:
    context = encode_context(messages, answer)
    assert context is not None
    assert decode_context(context) == (*messages, message("assistant", answer))


def test_next_prompt_follows_the_conversation_and_a_new_system_message_replaces_the_old_one() -> None:
    context = encode_context([message("system", "old"), message("user", "Hello")], "Hi!")
    chat = GenerateBody.parse({"prompt": "Again", "context": context}).to_chat("m")
    texts = [part.text for each in chat.messages for part in each.content if isinstance(part, Text)]
    assert texts == ["old", "Hello", "Hi!", "Again"]
    chat = GenerateBody.parse({"prompt": "Again", "context": context, "system": "new"}).to_chat("m")
    texts = [part.text for each in chat.messages for part in each.content if isinstance(part, Text)]
    assert texts == ["new", "Hello", "Hi!", "Again"]


def test_context_without_its_images_is_refused() -> None:
    context = encode_context([Message("user", (ImageBase64("a", "images[0]"), Text("What is it?")))], "A cat.")
    assert context is not None
    with pytest.raises(InvalidRequest, match="images") as refusal:
        decode_context(context)
    assert refusal.value.param == "context"


def test_long_conversation_has_no_context() -> None:
    assert encode_context([message("user", "a" * MAX_CONTEXT)], "b") is None


@given(st.lists(st.integers(-10, 1000), max_size=30) | st.binary(max_size=30).map(list))
def test_context_of_another_server_is_refused_or_harmless(context: list[int]) -> None:
    try:
        decode_context(context)
    except InvalidRequest as error:
        assert error.param == "context"


@pytest.mark.parametrize("turns", [b"5", b"[5]", b'[["user"]]', b'[["user","a",{}]]', b'["abc"]', b'{"a":1}', b'[["user","a","b"]]', b"[]"])
def test_context_of_another_form_is_no_error_of_the_server(turns: bytes) -> None:
    try:
        assert decode_context(list(turns)) == ()
    except InvalidRequest as error:
        assert error.param == "context"
