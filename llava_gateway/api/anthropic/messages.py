"""Anthropic's messages and content blocks, and their translation to the gateway's messages.

They are declared after `MessageParam` and `ContentBlockParam` of Anthropic's SDK. Fields that are not declared are ignored, such as
`cache_control`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llava_gateway.api.openai.messages import MAX_MESSAGES, MAX_PARTS, FileId
from llava_gateway.api.schema import LIST, ONE, ONE_OR_LIST, TAG_PREFIX, ImageString, StrictModel, to_json
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import ImageBase64, ImageFileId, ImageSource, ImageUrl, Message, Text, ToolCall

MAX_NAME = 128
"""The upper bound of a tool's name, in characters."""
ERROR = "Error:"
"""The text before the result of a tool that has failed. Chat templates have no other way to say so."""


class TextBlock(StrictModel):
    type: Literal["text"]
    text: str


class Base64Source(StrictModel):
    """An image file. Its `media_type` is ignored: the file itself says its format."""

    type: Literal["base64"]
    data: ImageString


class UrlSource(StrictModel):
    type: Literal["url"]
    url: ImageString


class FileSource(StrictModel):
    """An image that the client has uploaded to `/v1/files`."""

    type: Literal["file"]
    file_id: FileId


def _source_tag(source: Any) -> str | None:
    kind = source.get("type") if isinstance(source, dict) else None
    return TAG_PREFIX + kind if kind in ("base64", "url", "file") else None


class ImageTransformations(StrictModel):
    oversized_image: Literal["downsize"] | None = None


class ImageBlock(StrictModel):
    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag(TAG_PREFIX + "base64")]
        | Annotated[UrlSource, Tag(TAG_PREFIX + "url")]
        | Annotated[FileSource, Tag(TAG_PREFIX + "file")],
        Discriminator(_source_tag, custom_error_type="source", custom_error_message="must be an object of type base64, url or file"),
    ]
    transformations: ImageTransformations | None = None


class ThinkingBlock(StrictModel):
    """A thought of another model in an earlier message. The model does not see it."""

    type: Literal["thinking", "redacted_thinking"]


class ToolUseBlock(StrictModel):
    type: Literal["tool_use"]
    id: str
    name: str = Field(min_length=1, max_length=MAX_NAME)
    input: dict[str, Any]


def _refuse_type(kind: Any) -> Any:
    raise ValueError(f"must be a type that the model can read, such as text or image; {str(kind)[:50]} is not supported")


class OtherBlock(StrictModel):
    """A block of a type that the model cannot read, such as a document, or no block at all."""

    type: Annotated[str, BeforeValidator(_refuse_type)]


BlockType = Literal["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"]


def _block_tag(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return TAG_PREFIX + (kind if isinstance(kind, str) and kind in get_args(BlockType) else "other")


_TextTag, _ImageTag, _OtherTag = Tag(TAG_PREFIX + "text"), Tag(TAG_PREFIX + "image"), Tag(TAG_PREFIX + "other")


def _result_tag(block: Any) -> str:
    tag = _block_tag(block)
    return tag if tag in (_TextTag.tag, _ImageTag.tag) else _OtherTag.tag


_ResultBlock = Annotated[
    Annotated[TextBlock, _TextTag] | Annotated[ImageBlock, _ImageTag] | Annotated[OtherBlock, _OtherTag], Discriminator(_result_tag)
]


_String = Annotated[str, ONE]


class ToolResultBlock(StrictModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[_String | Annotated[list[_ResultBlock], Field(fail_fast=True), LIST], ONE_OR_LIST] | None = None
    is_error: bool | None = None


_Block = Annotated[
    Annotated[TextBlock, _TextTag]
    | Annotated[ImageBlock, _ImageTag]
    | Annotated[ToolUseBlock, Tag(TAG_PREFIX + "tool_use")]
    | Annotated[ToolResultBlock, Tag(TAG_PREFIX + "tool_result")]
    | Annotated[ThinkingBlock, Tag(TAG_PREFIX + "thinking")]
    | Annotated[ThinkingBlock, Tag(TAG_PREFIX + "redacted_thinking")]
    | Annotated[OtherBlock, _OtherTag],
    Discriminator(_block_tag),
]
Texts = Annotated[
    _String | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True), LIST],
    ONE_OR_LIST,
]
"""A text, or a list of text blocks."""


class AnthropicMessage(StrictModel):
    role: Literal["user", "assistant", "system"]
    content: Annotated[_String | Annotated[list[_Block], Field(fail_fast=True), LIST], ONE_OR_LIST]


def _count_blocks(messages: Any) -> Any:
    """Raise ValueError for too many messages or blocks.

    This check runs first: a few megabytes can hold hundreds of thousands of blocks.
    """
    if isinstance(messages, list):
        blocks = [block for message in messages for block in _content(message)]
        if len(messages) > MAX_MESSAGES or len(blocks) + sum(len(_content(block)) for block in blocks) > MAX_PARTS:
            raise ValueError(f"must be at most {MAX_MESSAGES} messages with at most {MAX_PARTS} content blocks in all")
    return messages


def _content(value: Any) -> list[Any]:
    content = value.get("content") if isinstance(value, dict) else None
    return content if isinstance(content, list) else []


Messages = Annotated[list[AnthropicMessage], Field(min_length=1, fail_fast=True), BeforeValidator(_count_blocks)]


def to_messages(system: str | list[TextBlock] | None, messages: list[AnthropicMessage]) -> tuple[Message, ...]:
    """Return the gateway's messages, with the system prompt first. Raises InvalidRequest.

    An empty last message of the assistant is left out: it asks for an answer from the beginning.
    """
    found = [Message("system", texts)] if (texts := _texts(system)) else []
    for index, message in enumerate(messages):
        found += _turns(message, f"messages[{index}].content")
    if messages[-1].role == "assistant" and not found[-1].content and not found[-1].tool_calls:
        found.pop()
    if not any(message.role != "system" for message in found):
        raise InvalidRequest("messages: must have a message of the user.", param="messages")
    return tuple(found)


def _texts(content: str | list[TextBlock] | None) -> tuple[Text, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    return tuple(Text(block.text) for block in content or ())


def _turns(message: AnthropicMessage, path: str) -> Iterator[Message]:
    """Yield a message in the gateway's form, which has the result of each tool call as a message of its own."""
    parts: list[Text | ImageSource] = []
    calls: list[ToolCall] = []
    results = False
    if isinstance(message.content, str):
        parts = list(_texts(message.content))
    else:
        for index, block in enumerate(message.content):
            block_path = f"{path}[{index}]"
            _check_role(message.role, block.type, block_path)
            if isinstance(block, ToolResultBlock):
                if parts:
                    yield Message(message.role, tuple(parts))
                yield _result(block, f"{block_path}.content")
                parts, results = [], True
            elif isinstance(block, ToolUseBlock):
                calls.append(ToolCall(block.id, block.name, to_json(block.input, f"{block_path}.input")))
            elif isinstance(block, TextBlock | ImageBlock):
                parts.append(_part(block, block_path))
    if parts or not results:
        yield Message(message.role, tuple(parts), tuple(calls))


_BLOCKS_OF = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "image", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}


def _check_role(role: str, kind: str, path: str) -> None:
    if kind not in _BLOCKS_OF[role]:
        raise InvalidRequest(f"{path}.type: a message of the role {role} has no {kind} blocks.", param=f"{path}.type")


def _result(block: ToolResultBlock, path: str) -> Message:
    content: tuple[Text | ImageSource, ...]
    if isinstance(block.content, list):
        content = tuple(_part(part, f"{path}[{index}]") for index, part in enumerate(block.content))
    else:
        content = _texts(block.content)
    return Message("tool", (Text(ERROR), *content) if block.is_error else content, tool_call_id=block.tool_use_id)


def _part(block: TextBlock | ImageBlock | OtherBlock, path: str) -> Text | ImageSource:
    assert not isinstance(block, OtherBlock), "validation has refused it"
    if isinstance(block, TextBlock):
        return Text(block.text)
    source, source_path = block.source, f"{path}.source"
    if isinstance(source, Base64Source):
        return ImageBase64(source.data, f"{source_path}.data")
    if isinstance(source, UrlSource):
        return ImageUrl(source.url, f"{source_path}.url")
    return ImageFileId(source.file_id, f"{source_path}.file_id")
