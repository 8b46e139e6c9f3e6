"""Uploaded files: OpenAI's SDK manages them, and a chat sees a file's picture as it sees the same picture in a data URI."""

from typing import Any

import pytest
from helpers.requests import body, image, user
from openai import BadRequestError, NotFoundError, OpenAI

from llava_gateway.demo.images import describe, draw, encode

GRID = ("red", "blue", "green", "orange")
PNG = encode(draw(GRID))


def test_chat_sees_an_uploaded_file_until_it_is_deleted(client: OpenAI) -> None:
    file = client.files.create(file=("grid.png", PNG, "image/png"), purpose="vision")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("grid.png", len(PNG), "vision", "processed")
    assert client.files.retrieve(file.id) == file
    assert file.id in [each.id for each in client.files.list(purpose="vision", limit=100)]
    assert client.files.content(file.id).read() == PNG

    by_file = user({"type": "image_url", "image_url": {"file_id": file.id}}, "Describe this image.")
    named = client.chat.completions.create(**body(image(GRID), "Describe this image.") | {"messages": [by_file]})
    inlined = client.chat.completions.create(**body(image(GRID), "Describe this image."))
    assert named.choices[0].message.content == inlined.choices[0].message.content == describe([GRID])
    assert named.usage
    assert inlined.usage
    assert named.usage.prompt_tokens == inlined.usage.prompt_tokens
    picture = {"type": "input_image", "file_id": file.id, "detail": "auto"}
    question = {"type": "input_text", "text": "Describe this image."}
    stored: Any = [{"role": "user", "content": [picture, question]}]
    assert client.responses.create(model="llava-demo", temperature=0, input=stored).output_text == describe([GRID])

    assert client.files.delete(file.id).deleted
    with pytest.raises(NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(BadRequestError, match="Files expire"):
        client.chat.completions.create(**body(image(GRID)) | {"messages": [by_file]})


def test_file_that_is_no_picture_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.files.create(file=("notes.txt", b"hello", "text/plain"), purpose="user_data")
    assert (refused.value.param, refused.value.code) == ("file", "invalid_image_format")
