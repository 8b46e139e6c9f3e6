"""The input of `/v1/decisions`: messages, calls of tools and their outputs, with text, image, video and JSON parts."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, Discriminator, Field, Tag

from llava_gateway import types
from llava_gateway.api.openai import messages
from llava_gateway.api.openai.messages import MAX_PARTS, AssistantMessage, Part, SystemMessage, UserMessage, to_arguments
from llava_gateway.api.schema import LIST, ONE, ONE_OR_LIST, TAG_PREFIX, StrictModel
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Message, Text, ToolCall

MAX_DEPTH, MAX_VALUES, MAX_JSON = 32, 10_000, 256 << 10
"""OpenAI's bounds of a JSON part: nested containers, values, and bytes."""


def _check_json(data: Any) -> Any:
    """Raise ValueError unless `data` is an object or a list of objects within OpenAI's bounds."""
    if not isinstance(data, dict) and not (isinstance(data, list) and all(isinstance(each, dict) for each in data)):
        raise ValueError("must be an object or a list of objects")
    level, values = [data], 0
    for _ in range(MAX_DEPTH):
        children = [child for container in level for child in (container.values() if isinstance(container, dict) else container)]
        values += len(children)
        level = [child for child in children if isinstance(child, dict | list)]
        if values > MAX_VALUES or not level:
            break
    if level or values > MAX_VALUES:
        raise ValueError(f"must have at most {MAX_DEPTH} levels of containers and {MAX_VALUES} values")
    if len(_as_json(data)) > MAX_JSON:
        raise ValueError(f"must have at most {MAX_JSON} bytes as JSON")
    return data


def _as_json(data: Any) -> bytes:
    return orjson.dumps(data, default=lambda value: bytes(value.ascii).decode(), option=orjson.OPT_PASSTHROUGH_DATACLASS)


class JsonPart(StrictModel):
    """A JSON value, which the model reads as text."""

    type: Literal["input_json"]
    data: Annotated[Any, AfterValidator(_check_json)]


def _input_part_tag(part: Any) -> str:
    is_json = isinstance(part, dict) and part.get("type") == "input_json"
    return TAG_PREFIX + ("json" if is_json else "other")


InputPart = Annotated[
    Annotated[JsonPart, Tag(TAG_PREFIX + "json")] | Annotated[Part, Tag(TAG_PREFIX + "other")], Discriminator(_input_part_tag)
]


_Content = Annotated[
    Annotated[str, ONE] | Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True), LIST],
    ONE_OR_LIST,
]


class DecisionUserMessage(UserMessage):
    content: _Content  # type: ignore[assignment]


class FunctionCall(StrictModel):
    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1, max_length=64)
    arguments: str


class CustomToolCall(StrictModel):
    type: Literal["custom_tool_call"]
    call_id: str
    name: str = Field(min_length=1, max_length=64)
    input: str


class CallOutput(StrictModel):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: _Content


_ITEM_TAGS = {
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "output",
    "custom_tool_call_output": "output",
}
"""The tags of items by their `type`. All other items are messages."""


def _item_tag(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    kind, role = item.get("type") or "message", item.get("role")
    if isinstance(kind, str) and kind in _ITEM_TAGS:
        return TAG_PREFIX + _ITEM_TAGS[kind]
    if kind != "message":
        return None
    return TAG_PREFIX + (role if isinstance(role, str) and role in ("user", "assistant") else "system")


InputItem = Annotated[
    Annotated[SystemMessage, Tag(TAG_PREFIX + "system")]
    | Annotated[DecisionUserMessage, Tag(TAG_PREFIX + "user")]
    | Annotated[AssistantMessage, Tag(TAG_PREFIX + "assistant")]
    | Annotated[FunctionCall, Tag(TAG_PREFIX + "function_call")]
    | Annotated[CustomToolCall, Tag(TAG_PREFIX + "custom_tool_call")]
    | Annotated[CallOutput, Tag(TAG_PREFIX + "output")],
    Discriminator(
        _item_tag, custom_error_type="item", custom_error_message=f"must be a message, or an object of type {', '.join(_ITEM_TAGS)}"
    ),
]
AnyItem = SystemMessage | DecisionUserMessage | AssistantMessage | FunctionCall | CustomToolCall | CallOutput


def to_input_messages(given: str | list[AnyItem]) -> tuple[Message, ...]:
    """Return the input as the gateway's messages. Raises InvalidRequest for an output whose call does not precede it."""
    if isinstance(given, str):
        return (Message("user", (Text(given),)),) if given else ()
    found, calls = list[Message](), set[str]()
    for index, item in enumerate(given):
        path = f"input[{index}]"
        if isinstance(item, CallOutput):
            if item.call_id not in calls:
                message = f"{path}.call_id: no call before this output has the id {item.call_id[:50]!r}."
                raise InvalidRequest(message, param=f"{path}.call_id")
            found.append(Message("tool", messages.to_parts(item.output, f"{path}.output", to_part), tool_call_id=item.call_id))
        elif isinstance(item, FunctionCall | CustomToolCall):
            calls.add(item.call_id)
            found.append(Message("assistant", (), (_call(item, path),)))
        else:
            found.append(messages.to_message(item, path, to_part))
    return tuple(found)


def to_part(part: Any, path: str) -> types.Part:
    """Return a text, an image, a video or a JSON value as the gateway's part. `path`: of the part in the client's request."""
    return Text(_as_json(part.data).decode()) if isinstance(part, JsonPart) else messages.to_part(part, path)


def _call(item: FunctionCall | CustomToolCall, path: str) -> ToolCall:
    if isinstance(item, FunctionCall):
        return ToolCall(item.call_id, item.name, to_arguments(item.arguments, f"{path}.arguments"))
    return ToolCall(item.call_id, item.name, orjson.dumps(item.input).decode())
