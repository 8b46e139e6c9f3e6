"""The Responses API on the real engine, with OpenAI's SDK: its answers equal those of chat completions."""

from typing import Any

import httpx
import pytest
from helpers.errors import refused
from helpers.requests import MODEL, body, image
from helpers.responses import without_ids
from openai import BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from openai.types.responses import Response
from pydantic import BaseModel, Field

from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID, OTHER = ("red", "blue", "green", "orange"), ("white", "yellow", "black", "purple")
ASK: dict[str, Any] = {"model": MODEL, "temperature": 0}


class Show(BaseModel):
    at: str = Field(pattern="^(top|bottom)$")


def picture(grid: Any) -> dict[str, Any]:
    """Return an image part as the SDK sends it."""
    return {"type": "input_image", "detail": "auto", "image_url": data_uri(encode(draw(grid)))}


def user(*content: Any) -> Any:
    return {"role": "user", "content": [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in content]}


def test_answer_about_images_equals_that_of_a_chat(client: OpenAI) -> None:
    response = client.responses.create(**ASK, input=[user(picture(GRID), picture(OTHER), "Describe these images.")])
    chat = client.chat.completions.create(**body(image(GRID), image(OTHER), "Describe these images."))
    assert response.output_text == chat.choices[0].message.content == describe([GRID, OTHER])
    assert response.usage
    assert chat.usage
    assert (response.usage.input_tokens, response.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)


def test_stream_gives_the_same_response(client: OpenAI) -> None:
    given = [user(picture(GRID), "Describe this image.")]
    logprobs: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with client.responses.stream(**ASK, **logprobs, input=given) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()
    whole = client.responses.create(**ASK, **logprobs, input=given)
    assert streamed.output_text == whole.output_text == describe([GRID])
    assert kinds.count("response.output_text.delta") > 10
    assert without_ids(streamed.model_dump(exclude={"output"})) == without_ids(whole.model_dump(exclude={"output"}))
    (message,) = whole.output
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    tokens = message.content[0].logprobs or []
    assert "".join(token.token for token in tokens) == whole.output_text
    assert all(len(token.top_logprobs) >= 2 for token in tokens)


def test_conversation_goes_on_with_its_image(client: OpenAI) -> None:
    first = client.responses.create(**ASK, input=[user(picture(GRID), "Hello")], instructions="Be brief.")
    second = client.responses.create(**ASK, input="Describe this image.", previous_response_id=first.id)
    assert second.output_text == describe([GRID])
    assert client.responses.retrieve(second.id) == second
    items = client.responses.input_items.list(first.id).data
    assert [item.type for item in items] == ["message"]
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(BadRequestError) as gone:
        client.responses.create(**ASK, input="And now?", previous_response_id=second.id)
    assert gone.value.code == "previous_response_not_found"


def test_call_and_its_result_go_around(client: OpenAI) -> None:
    tool: Any = pydantic_function_tool(Show)["function"]
    tools: Any = [{"type": "function", **tool}]
    first = client.responses.parse(
        **ASK, input=[user(picture(GRID), "Hello")], tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    (call, *_) = first.output
    assert call.type == "function_call"
    assert call.name == "Show"
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": [picture(OTHER)]}
        for item in first.output
        if item.type == "function_call"
    ]
    second = client.responses.create(**ASK, input=results, previous_response_id=first.id, tools=tools)
    assert second.output_text
    with client.responses.stream(**ASK, input="Hello", tools=tools, tool_choice={"type": "function", "name": "Show"}) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert [Show.model_validate_json(event.arguments) for event in done]


def test_answer_is_parsed_with_a_schema(client: OpenAI) -> None:
    response = client.responses.parse(**ASK, input="Hello", text_format=Show)
    assert isinstance(response.output_parsed, Show)
    cut: Response = client.responses.create(**ASK, input="Hello", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_image_error_names_its_item(http: httpx.Client) -> None:
    bad = {"type": "input_image", "image_url": "http://192.0.2.1/x.png"}
    answer = http.post("/v1/responses", json={"input": [user("Look", bad)], "stream": True})
    refused(answer, 400, "input[0].content[1].image_url")
