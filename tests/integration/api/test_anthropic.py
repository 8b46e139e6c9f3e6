"""Anthropic's SDK on the real engine: whole and streamed messages, images, tools, and the count of tokens."""

from typing import Any

import httpx
import pytest
from anthropic import Anthropic, BadRequestError, NotFoundError
from helpers.origin import GRID as ORIGIN_GRID
from helpers.origin import Origin
from helpers.requests import MODEL, body, image
from helpers.server import Server
from jsonschema import validate

from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID = ("red", "blue", "green", "orange")
QUESTION = "Describe this image."
BASE64 = data_uri(encode(draw(GRID))).partition(",")[2]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}
TOOLS: Any = [{"name": "paint", "description": "Paint an area", "input_schema": SCHEMA}]
PAINT: Any = {"type": "tool", "name": "paint"}


@pytest.fixture(scope="module")
def sdk(server: Server) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def picture(source: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image", "source": source}


def asked(*content: Any, **fields: Any) -> Any:
    """Return a request with one message of the user: images, and a question."""
    blocks = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    message = {"role": "user", "content": blocks}
    return {"model": MODEL, "max_tokens": 200, "messages": [message], "extra_body": {"temperature": 0}} | fields


SEEN = picture({"type": "base64", "media_type": "image/png", "data": BASE64})


def test_answer_and_tokens_are_those_of_chat_completions(sdk: Anthropic, http: httpx.Client) -> None:
    message = sdk.messages.create(**asked(SEEN, QUESTION, system="Be kind."))
    chat = body(image(GRID), QUESTION)
    chat["messages"].insert(0, {"role": "system", "content": "Be kind."})
    completion = http.post("/v1/chat/completions", json=chat).json()
    assert [block.text for block in message.content if block.type == "text"] == [completion["choices"][0]["message"]["content"]]
    assert message.stop_reason == "end_turn"
    usage = message.usage
    prompt_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert (prompt_tokens, usage.output_tokens) == (completion["usage"]["prompt_tokens"], completion["usage"]["completion_tokens"])
    count = asked(SEEN, QUESTION, system="Be kind.")
    assert sdk.messages.count_tokens(model=MODEL, messages=count["messages"], system=count["system"]).input_tokens == prompt_tokens
    assert message._request_id


def test_stream_helper_gets_the_whole_answer_in_pieces(sdk: Anthropic) -> None:
    with sdk.messages.stream(**asked(SEEN, QUESTION)) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == describe([GRID])
    whole = sdk.messages.create(**asked(SEEN, QUESTION))
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    total = [usage.input_tokens + (usage.cache_read_input_tokens or 0) for usage in (message.usage, whole.usage)]
    assert total[0] == total[1]


def test_image_by_url_is_fetched(sdk: Anthropic, origin: Origin) -> None:
    message = sdk.messages.create(**asked(picture({"type": "url", "url": f"{origin.url}/picture"}), QUESTION))
    assert [block.text for block in message.content if block.type == "text"] == [describe([ORIGIN_GRID])]
    with pytest.raises(BadRequestError) as refused:
        sdk.messages.create(**asked(picture({"type": "url", "url": f"{origin.url}/missing"}), QUESTION))
    assert "messages[0].content[0].source.url" in refused.value.message


def test_image_may_be_an_uploaded_file(sdk: Anthropic, plain_http: httpx.Client) -> None:
    form = {"file": ("grid.png", encode(draw(GRID)), "image/png")}
    file_id = plain_http.post("/v1/files", files=form, data={"purpose": "vision"}).json()["id"]
    message = sdk.messages.create(**asked(picture({"type": "file", "file_id": file_id}), QUESTION))
    assert [block.text for block in message.content if block.type == "text"] == [describe([GRID])]
    with pytest.raises(BadRequestError, match="file_id"):
        sdk.messages.create(**asked(picture({"type": "file", "file_id": "file-unknown"}), QUESTION))


def test_tool_is_called_and_its_result_is_answered(sdk: Anthropic) -> None:
    request = asked(SEEN, QUESTION, tools=TOOLS, tool_choice=PAINT)
    message = sdk.messages.create(**request)
    (call,) = message.content
    assert call.type == "tool_use"
    assert message.stop_reason == "tool_use"
    validate(call.input, SCHEMA)
    with sdk.messages.stream(**request) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use"
    assert streamed.input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "painted"}, SEEN]}
    request["messages"] += [message.to_param(), {"role": "user", "content": [result]}]
    answer = sdk.messages.create(**request | {"tool_choice": {"type": "none"}})
    assert answer.stop_reason == "end_turn"
    assert answer.content[0].type == "text"
    count = sdk.messages.count_tokens(model=MODEL, messages=request["messages"], tools=TOOLS, tool_choice={"type": "none"})
    assert count.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_calls_that_are_cut_off_are_the_same_whole_and_streamed(sdk: Anthropic) -> None:
    request = asked("Hello", tools=TOOLS, tool_choice=PAINT, max_tokens=3)
    message = sdk.messages.create(**request)
    with sdk.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert message.stop_reason == streamed.stop_reason == "max_tokens"
    blocks: list[Any] = [each.content[0] for each in (message, streamed)]
    assert [block.type for block in blocks] == ["tool_use", "tool_use"]
    assert blocks[0].input == blocks[1].input


def test_answer_continues_the_assistants_last_message(sdk: Anthropic) -> None:
    begin = describe([GRID])[:20]
    request = asked(SEEN, QUESTION)
    request["messages"].append({"role": "assistant", "content": begin})
    (block,) = sdk.messages.create(**request).content
    assert block.type == "text"
    assert begin + block.text == describe([GRID])


def test_stop_sequence_is_named(sdk: Anthropic) -> None:
    word = describe([GRID]).split()[3]
    message = sdk.messages.create(**asked(SEEN, QUESTION, stop_sequences=["never", word]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert sdk.messages.create(**asked(SEEN, QUESTION, max_tokens=2)).stop_reason == "max_tokens"


def test_answer_follows_a_schema(sdk: Anthropic) -> None:
    message = sdk.messages.create(**asked("Hello", output_config={"format": {"type": "json_schema", "schema": SCHEMA}}))
    (block,) = message.content
    assert block.type == "text"
    assert block.text in ('{"color":"red"}', '{"color":"blue"}')


def test_sdk_raises_its_own_errors(sdk: Anthropic) -> None:
    with pytest.raises(NotFoundError) as unknown:
        sdk.messages.create(**asked("Hello", model="other"))
    assert unknown.value.request_id
    with pytest.raises(BadRequestError, match="max_tokens"):
        sdk.messages.create(**asked("Hello", max_tokens=-1))
