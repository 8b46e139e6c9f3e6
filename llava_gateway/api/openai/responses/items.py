"""The items of a response's input: their validation, their translation to the gateway's messages, and their form in the store.

They are declared after OpenAI's `InputItem`. An item's id is made of the id of its response and its position there, so an item is found
without an index.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from llava_gateway import types
from llava_gateway.api.openai.messages import MAX_MESSAGES, Content, check_counts, to_arguments, to_part, to_parts
from llava_gateway.api.schema import TAG_PREFIX, StrictModel
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import BodySlice, ImageBase64, ImageFileId, Message, Role, Text, ToolCall, VideoUrl

_ITEM_ID = re.compile(r"(?:msg|fc|fco)_([0-9a-f]{32})([0-9a-f]{4})")
_KINDS = ("function_call", "function_call_output", "item_reference", "reasoning")


def make_item_id(prefix: Literal["msg", "fc", "fco"], response_id: str, position: int) -> str:
    """Return the id of an item. `position`: among the input and output items of its response, from 0."""
    return f"{prefix}_{response_id.removeprefix('resp_')}{position:04x}"


def place_of(item_id: str) -> tuple[str, int] | None:
    """Return the id of the response that an item belongs to, and the item's position there. None: this server makes no such ids."""
    match = _ITEM_ID.fullmatch(item_id)
    return (f"resp_{match[1]}", int(match[2], 16)) if match else None


def _check_role(role: Any) -> Any:
    if role not in ("user", "assistant", "system", "developer"):
        raise ValueError("must be user, assistant, system or developer")
    return role


class InputMessage(StrictModel):
    type: Literal["message"] | None = None
    role: Annotated[Literal["user", "assistant", "system", "developer"], BeforeValidator(_check_role)]
    content: Content | None


class FunctionCallItem(StrictModel):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1, max_length=64)
    arguments: str | dict[str, Any]


class FunctionCallOutputItem(StrictModel):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Content


class ItemReference(StrictModel):
    type: Literal["item_reference"] | None = None
    id: str


class ReasoningItem(StrictModel):
    """The reasoning of another model. The model has no reasoning step, so its prompt does not show it."""

    type: Literal["reasoning"]


def _item_tag(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind in (None, "message"):
        return TAG_PREFIX + ("item_reference" if kind is None and "role" not in item and "id" in item else "message")
    return TAG_PREFIX + kind if kind in _KINDS else None


Item = InputMessage | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
"""An item that is not a reference."""
InputItem = Annotated[
    Annotated[InputMessage, Tag(TAG_PREFIX + "message")]
    | Annotated[FunctionCallItem, Tag(TAG_PREFIX + "function_call")]
    | Annotated[FunctionCallOutputItem, Tag(TAG_PREFIX + "function_call_output")]
    | Annotated[ItemReference, Tag(TAG_PREFIX + "item_reference")]
    | Annotated[ReasoningItem, Tag(TAG_PREFIX + "reasoning")],
    Discriminator(
        _item_tag,
        custom_error_type="item",
        custom_error_message="must be an object of type message, function_call, function_call_output, item_reference or reasoning",
    ),
]


_CountParts = BeforeValidator(lambda items: check_counts(items, "content", "output"))
InputItems = Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True), _CountParts]
STORED_ITEMS: TypeAdapter[list[Item | ItemReference]] = TypeAdapter(InputItems)
"""Validates items that come from the store."""


def to_messages(items: Iterable[tuple[Item, str]]) -> tuple[Message, ...]:
    """Return the gateway's messages. `items`: each with the path in the request, for error messages. Raises InvalidRequest."""
    return tuple(_message(item, path) for item, path in items if not isinstance(item, ReasoningItem))


def _message(item: InputMessage | FunctionCallItem | FunctionCallOutputItem, path: str) -> Message:
    if isinstance(item, FunctionCallItem):
        call = ToolCall(item.call_id, item.name, to_arguments(item.arguments, f"{path}.arguments"))
        return Message("assistant", (), (call,))
    if isinstance(item, FunctionCallOutputItem):
        return Message("tool", to_parts(item.output, f"{path}.output", to_part), tool_call_id=item.call_id)
    role: Role = "system" if item.role == "developer" else item.role
    return Message(role, to_parts(item.content, f"{path}.content", to_part))


def stored_form(item: Item, response_id: str, position: int) -> dict[str, Any] | None:
    """Return an item as the SDKs read it, with its id. Images and videos stay BodySlices. None: the item is not kept."""
    if isinstance(item, ReasoningItem):
        return None
    if isinstance(item, FunctionCallItem):
        arguments = to_arguments(item.arguments, "") if isinstance(item.arguments, dict) else item.arguments
        call = {"type": "function_call", "status": "completed", "call_id": item.call_id, "name": item.name, "arguments": arguments}
        return {"id": make_item_id("fc", response_id, position), **call}
    if isinstance(item, FunctionCallOutputItem):
        output = item.output if isinstance(item.output, str) else _content(item.output, "input_text")
        result = {"type": "function_call_output", "status": "completed", "call_id": item.call_id, "output": output}
        return {"id": make_item_id("fco", response_id, position), **result}
    content = _content(item.content, "output_text" if item.role == "assistant" else "input_text")
    message = {"type": "message", "status": "completed", "role": item.role, "content": content}
    return {"id": make_item_id("msg", response_id, position), **message}


def _content(content: Content | None, text_type: Literal["input_text", "output_text"]) -> list[dict[str, Any]]:
    return [_part(part, text_type) for part in to_parts(content, "", to_part)]


def _part(part: types.Part, text_type: Literal["input_text", "output_text"]) -> dict[str, Any]:
    if isinstance(part, Text):
        annotations: dict[str, Any] = {"annotations": []} if text_type == "output_text" else {}
        return {"type": text_type, "text": part.text, **annotations}
    if isinstance(part, VideoUrl):
        return {"type": "input_video", "video_url": part.url}
    image = {"type": "input_image", "detail": "auto"}
    if isinstance(part, ImageFileId):
        return {**image, "file_id": part.file_id}
    return {**image, "image_url": _data_uri(part.base64) if isinstance(part, ImageBase64) else part.url}


def _data_uri(base64: str | BodySlice) -> str:
    return "data:;base64," + (base64 if isinstance(base64, str) else text_of(base64))


def text_of(medium: BodySlice) -> str:
    """Return the string of an image or a video that stands in a request's body."""
    return str(medium.ascii, "utf-8", "replace")


def check_not_empty(messages: tuple[Message, ...]) -> None:
    """Raise InvalidRequest if a conversation has no message."""
    if not messages:
        raise InvalidRequest("input must have at least one message, or instructions or previous_response_id beside it.", param="input")
