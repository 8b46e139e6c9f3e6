"""The forms in which clients send messages. Each has the meaning that its sender had."""

from typing import Any

import pytest

from llava_gateway.api.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import ImageFileId, ImageUrl, Message, Part, Text, VideoUrl

URL = "https://example.com/cat.jpg"
PART = "messages[0].content[0]"


def messages(*sent: dict[str, Any]) -> tuple[Message, ...]:
    return to_chat(ChatCompletionRequest.parse({"model": "m", "messages": list(sent)})).messages


@pytest.mark.parametrize(
    ("part", "meant"),
    [
        ("a", Text("a")),
        ({"text": "a"}, Text("a")),
        ({"type": None, "text": "a"}, Text("a")),
        ({"type": "input_text", "text": "a"}, Text("a")),
        ({"type": "output_text", "text": "a", "annotations": []}, Text("a")),
        ({"type": "refusal", "refusal": "a"}, Text("a")),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "original"}}, ImageUrl(URL, f"{PART}.image_url.url")),
        ({"image_url": {"url": URL}}, ImageUrl(URL, f"{PART}.image_url.url")),
        ({"type": "image_url", "image_url": URL}, ImageUrl(URL, f"{PART}.image_url")),
        ({"image_url": URL}, ImageUrl(URL, f"{PART}.image_url")),
        ({"type": "input_image", "image_url": URL, "detail": "auto", "file_id": None}, ImageUrl(URL, f"{PART}.image_url")),
        ({"type": "input_image", "image_url": None, "file_id": "x"}, ImageFileId("x", f"{PART}.file_id")),
        ({"type": "video_url", "video_url": {"url": URL}}, VideoUrl(URL, f"{PART}.video_url.url")),
        ({"video_url": {"url": URL}}, VideoUrl(URL, f"{PART}.video_url.url")),
        ({"type": "video_url", "video_url": URL}, VideoUrl(URL, f"{PART}.video_url")),
        ({"type": "input_video", "video_url": URL}, VideoUrl(URL, f"{PART}.video_url")),
        ({"type": "video", "video": URL}, VideoUrl(URL, f"{PART}.video")),
        ({"type": "video", "url": URL}, VideoUrl(URL, f"{PART}.url")),
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_part_has_its_senders_meaning(part: Any, meant: Part, role: str) -> None:
    assert [message.content for message in messages({"role": role, "content": [part]})] == [(meant,)]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (5, PART),
        (None, PART),
        ([], PART),
        ({}, PART),
        ({"type": "input_audio", "input_audio": {}}, PART),
        ({"type": "input_file", "file_id": "x"}, PART),
        ({"type": ["text"], "text": "a"}, PART),
        ({"type": "text"}, f"{PART}.text"),
        ({"type": "refusal", "text": "a"}, f"{PART}.refusal"),
        ({"type": "input_image", "image_url": None, "file_id": None}, PART),
        ({"type": "image_url", "image_url": ""}, f"{PART}.image_url"),
        ({"type": "image_url", "image_url": {"url": ""}}, f"{PART}.image_url.url"),
        ({"text": "a", "type": "image_url"}, PART),
        ({"type": "video_url"}, f"{PART}.video_url"),
        ({"type": "video_url", "video_url": {}}, f"{PART}.video_url.url"),
        ({"type": "video", "video": URL, "url": URL}, PART),
        ({"type": "video", "video": ["data:image/png;base64,AA==", "data:image/png;base64,AA=="]}, f"{PART}.video"),
    ],
    ids=str,
)
def test_part_without_a_meaning_is_refused_by_its_path(part: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages({"role": "user", "content": [part]})
    assert refused.value.param == param


@pytest.mark.parametrize("content", ["", [], None])
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_empty_content_is_accepted(content: Any, role: str) -> None:
    assert [message.content for message in messages({"role": role, "content": content})] == [()]


def test_refusal_of_the_assistant_is_in_the_history() -> None:
    refused, answered = messages(
        {"role": "assistant", "content": None, "refusal": "I cannot help."}, {"role": "assistant", "content": "Yes.", "refusal": None}
    )
    assert refused.content == (Text("I cannot help."),)
    assert answered.content == (Text("Yes."),)
