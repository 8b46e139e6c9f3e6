"""Conversations that cannot be voted on."""

import pytest

from llava_gateway.errors import InvalidRequest
from llava_gateway.feedback.record import check_turns
from llava_gateway.types import ImageUrl, Message, Text, VideoUrl


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        (VideoUrl("data:,", "path"), Text("A cat."), "votes on answers about videos"),
        (Text("What?"), VideoUrl("data:,", "path"), "votes on answers about videos"),
        (Text("What?"), ImageUrl("data:,", "path"), "only the user's messages may have images"),
    ],
)
def test_media_that_a_dataset_cannot_hold_are_refused_by_their_path(
    question: Text | VideoUrl, answer: Text | ImageUrl | VideoUrl, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        check_turns([Message("user", (question,)), Message("assistant", (answer,))])
    assert refused.value.param == "path"
