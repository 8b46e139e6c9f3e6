"""OpenAI's chat messages, for every API that accepts them.

They are declared after OpenAI's `ChatCompletionRequestMessage` and become the gateway's `Message`s.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from llava_gateway import types
from llava_gateway.api.schema import LIST, ONE, ONE_OR_LIST, TAG_PREFIX, ImageString, StrictModel, VideoString
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import BodySlice, ImageBase64, ImageFileId, ImageSource, ImageUrl, Message, Role, Text, ToolCall, VideoUrl

PartT = TypeVar("PartT", bound=StrictModel)
T = TypeVar("T")
ToPart = Callable[[T, str], types.Part]
"""Returns the gateway's part for one of the client's. The text is the part's path in the client's request."""

MAX_MESSAGES = 2048
MAX_PARTS = 4096
"""The upper bound of content parts and calls of tools in all messages together."""
TextType = Literal["text", "input_text", "output_text"]
ImageType = Literal["image_url", "input_image"]
VideoType = Literal["video_url", "input_video"]
"""The types of text, image and video parts. Types that begin with `input_` or `output_` follow OpenAI's Responses API."""


FileId = Annotated[str, Field(max_length=100)]
FILE_ID = "the id of an uploaded file"


class ImageReference(StrictModel):
    url: ImageString | None = Field(None, description="an http(s) URL, or a data: URI in base64")
    file_id: FileId | None = Field(None, description=FILE_ID + ", instead of `url`")
    detail: str | None = Field(None, description="ignored: the model always sees the whole image, which takes 576 tokens in LLaVA-1.5")

    @model_validator(mode="after")
    def _check_one_source(self) -> "ImageReference":
        return _with_one_of(self, "url", "file_id")


def _with_one_of(part: PartT, *fields: str) -> PartT:
    """Return the part. Raises ValueError unless exactly one of these fields is set."""
    if sum(getattr(part, name) is not None for name in fields) != 1:
        raise ValueError(f"must hold exactly one of {' and '.join(fields)}")
    return part


def _reference_tag(reference: Any) -> str:
    return TAG_PREFIX + ("object" if isinstance(reference, dict) else "string")


class TextPart(StrictModel):
    type: TextType | None = None
    text: str


class RefusalPart(StrictModel):
    """A text of the assistant that refuses an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(StrictModel):
    """An image part of chat completions, or of OpenAI's Responses API, where `image_url` is a string."""

    type: ImageType | None = None
    image_url: (
        Annotated[
            Annotated[ImageReference, Tag(TAG_PREFIX + "object")] | Annotated[ImageString, Tag(TAG_PREFIX + "string")],
            Discriminator(_reference_tag),
        ]
        | None
    ) = None
    file_id: FileId | None = Field(None, description=FILE_ID + ", instead of `image_url`")

    @model_validator(mode="after")
    def _check_one_source(self) -> "ImagePart":
        return _with_one_of(self, "image_url", "file_id")


class FileReference(StrictModel):
    file_id: FileId | None = Field(None, description=FILE_ID)
    file_data: ImageString | None = Field(None, description="an image file as a data: URI in base64, instead of `file_id`")

    @model_validator(mode="after")
    def _check_one_source(self) -> "FileReference":
        if self.file_data is not None and not _is_image_uri(self.file_data):
            raise ValueError("must be an image: file_data is a data:image/... URI, and other files are not supported")
        return _with_one_of(self, "file_id", "file_data")


def _is_image_uri(data: str | BodySlice) -> bool:
    start = data[:100] if isinstance(data, str) else bytes(data.ascii[:100]).decode(errors="replace")
    return start.lstrip().lower().startswith("data:image/")


class FilePart(StrictModel):
    """A file part of chat completions. The file must be an image."""

    type: Literal["file"]
    file: FileReference


class HuggingFaceImagePart(StrictModel):
    """An image part in the form that `apply_chat_template` of transformers accepts."""

    type: Literal["image"]
    url: ImageString | None = None
    base64: ImageString | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> "HuggingFaceImagePart":
        return _with_one_of(self, "url", "base64")


class VideoReference(StrictModel):
    url: VideoString = Field(description="an http(s) URL, or a data: URI in base64")


class VideoPart(StrictModel):
    """A video part in the form of vLLM and OpenRouter. As in the Responses API's parts, `video_url` may also be a string."""

    type: VideoType | None = None
    video_url: Annotated[
        Annotated[VideoReference, Tag(TAG_PREFIX + "object")] | Annotated[VideoString, Tag(TAG_PREFIX + "string")],
        Discriminator(_reference_tag),
    ]


class HuggingFaceVideoPart(StrictModel):
    """A video part in the form that `apply_chat_template` of transformers and Qwen's clients accept."""

    type: Literal["video"]
    url: VideoString | None = None
    video: VideoString | None = Field(None, description="the same as `url`")

    @model_validator(mode="after")
    def _check_one_source(self) -> "HuggingFaceVideoPart":
        return _with_one_of(self, "url", "video")


_PART_TAGS = {
    **dict.fromkeys(get_args(TextType), "text"),
    **dict.fromkeys(get_args(ImageType), "image_url"),
    **dict.fromkeys(get_args(VideoType), "video_url"),
    "refusal": "refusal",
    "image": "image",
    "video": "video",
    "file": "file",
}
"""The tags of parts by their `type`."""


def _part_tag(part: Any) -> str | None:
    if not isinstance(part, dict):
        return TAG_PREFIX + "string" if isinstance(part, str | BodySlice) else None
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in ("text", "image_url", "video_url") if name in part), None)
    return TAG_PREFIX + _PART_TAGS[kind] if isinstance(kind, str) and kind in _PART_TAGS else None


Part = Annotated[
    Annotated[TextPart, Tag(TAG_PREFIX + "text")]
    | Annotated[RefusalPart, Tag(TAG_PREFIX + "refusal")]
    | Annotated[ImagePart, Tag(TAG_PREFIX + "image_url")]
    | Annotated[HuggingFaceImagePart, Tag(TAG_PREFIX + "image")]
    | Annotated[VideoPart, Tag(TAG_PREFIX + "video_url")]
    | Annotated[HuggingFaceVideoPart, Tag(TAG_PREFIX + "video")]
    | Annotated[FilePart, Tag(TAG_PREFIX + "file")]
    | Annotated[str, Tag(TAG_PREFIX + "string")],
    Discriminator(
        _part_tag,
        custom_error_type="part",
        custom_error_message="must be a text, or an object of type text, image_url, image, video_url, video or file",
    ),
]
Content = Annotated[
    Annotated[str, ONE] | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True), LIST],
    ONE_OR_LIST,
]


def _check_role(role: Any) -> Any:
    if role not in ("system", "developer", "user", "assistant", "tool", "function"):
        raise ValueError("must be system, developer, user, assistant, tool or function")
    return role


class SystemMessage(StrictModel):
    role: Annotated[Literal["system", "developer"], BeforeValidator(_check_role)]
    content: Content | None


class UserMessage(StrictModel):
    role: Literal["user"]
    content: Content | None


class CalledFunction(StrictModel):
    name: str = Field(min_length=1, max_length=64)
    arguments: str | dict[str, Any]


class CalledTool(StrictModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(StrictModel):
    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    tool_calls: list[CalledTool] | None = Field(None, max_length=MAX_PARTS, fail_fast=True)
    function_call: CalledFunction | None = None

    def calls(self, path: str) -> tuple[ToolCall, ...]:
        """Return the message's calls. A call in the older form has its function's name as its id."""
        calls = tuple(
            ToolCall(call.id, call.function.name, to_arguments(call.function.arguments, f"{path}.tool_calls[{index}].function.arguments"))
            for index, call in enumerate(self.tool_calls or ())
        )
        if (called := self.function_call) is None:
            return calls
        return *calls, ToolCall(called.name, called.name, to_arguments(called.arguments, f"{path}.function_call.arguments"))


class ToolMessage(StrictModel):
    role: Literal["tool"]
    content: Content | None = None
    tool_call_id: str


class FunctionMessage(StrictModel):
    """The older form of a tool message."""

    role: Literal["function"]
    content: Content | None = None
    name: str


def _role_tag(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    return TAG_PREFIX + (role if isinstance(role, str) and role in ("user", "assistant", "tool", "function") else "system")


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag(TAG_PREFIX + "system")]
    | Annotated[UserMessage, Tag(TAG_PREFIX + "user")]
    | Annotated[AssistantMessage, Tag(TAG_PREFIX + "assistant")]
    | Annotated[ToolMessage, Tag(TAG_PREFIX + "tool")]
    | Annotated[FunctionMessage, Tag(TAG_PREFIX + "function")],
    Discriminator(_role_tag),
]


def check_counts(messages: Any, *fields: str) -> Any:
    """Return the messages. Raise ValueError for too many of them, or too many parts and calls of tools in these fields of the messages.

    This check runs first: a few megabytes can hold hundreds of thousands of parts.
    """
    if isinstance(messages, list):
        parts = sum(
            len(message[field])
            for field in fields
            for message in messages
            if isinstance(message, dict) and isinstance(message.get(field), list)
        )
        if len(messages) > MAX_MESSAGES or parts > MAX_PARTS:
            raise ValueError(f"must be at most {MAX_MESSAGES} messages with at most {MAX_PARTS} parts and tool calls in all")
    return messages


_CountParts = BeforeValidator(lambda messages: check_counts(messages, "content", "tool_calls"))
Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), _CountParts]


def to_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """Return the gateway's messages."""
    return tuple(to_message(message, f"messages[{index}]", to_part) for index, message in enumerate(messages))


def to_message(
    message: SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, path: str, to_part: ToPart[Any]
) -> Message:
    """Return the gateway's message. `path`: of the message in the client's request. `to_part`: as for `to_parts`."""
    parts = to_parts(message.content, f"{path}.content", to_part)
    if isinstance(message, AssistantMessage):
        if message.refusal:
            parts = (*parts, Text(message.refusal))
        return Message("assistant", parts, message.calls(path))
    if isinstance(message, ToolMessage | FunctionMessage):
        call_id = message.tool_call_id if isinstance(message, ToolMessage) else message.name
        return Message("tool", parts, tool_call_id=call_id)
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, parts)


def to_parts(content: str | Sequence[T] | None, path: str, to_part: ToPart[T]) -> tuple[types.Part, ...]:
    """Return the texts, images and videos of a content. `path`: of the content in the client's request. `to_part`: returns one of them."""
    if isinstance(content, str):
        return (Text(content),) if content else ()
    return tuple(to_part(part, f"{path}[{index}]") for index, part in enumerate(content or ()))


def to_arguments(arguments: str | dict[str, Any], path: str) -> str:
    """Return the arguments of a call as JSON. Arguments that are no JSON object become a JSON string. Raises InvalidRequest."""
    value: Any = arguments
    if isinstance(arguments, str):
        try:
            value = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            value = None
    try:
        return orjson.dumps(value if isinstance(value, dict) else arguments).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{path} is nested too deeply.", param=path) from None


def to_part(
    part: TextPart | RefusalPart | ImagePart | HuggingFaceImagePart | VideoPart | HuggingFaceVideoPart | FilePart | str, path: str
) -> types.Part:
    """Return the gateway's part. `path`: of the part in the client's request."""
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, TextPart):
        return Text(part.text)
    if isinstance(part, RefusalPart):
        return Text(part.refusal)
    if isinstance(part, HuggingFaceImagePart):
        return ImageUrl(part.url, f"{path}.url") if part.url is not None else ImageBase64(part.base64 or "", f"{path}.base64")
    if isinstance(part, HuggingFaceVideoPart):
        return VideoUrl(part.url, f"{path}.url") if part.url is not None else VideoUrl(part.video or "", f"{path}.video")
    if isinstance(part, VideoPart):
        video = part.video_url
        return VideoUrl(video.url, f"{path}.video_url.url") if isinstance(video, VideoReference) else VideoUrl(video, f"{path}.video_url")
    if isinstance(part, FilePart):
        return _image(part.file.file_data, "file_data", part.file.file_id, f"{path}.file")
    if isinstance(part.image_url, ImageReference):
        return _image(part.image_url.url, "url", part.image_url.file_id, f"{path}.image_url")
    return _image(part.image_url, "image_url", part.file_id, path)


def _image(url: str | BodySlice | None, url_field: str, file_id: str | None, path: str) -> ImageSource:
    """Return the image of a part that has either a URL or a file's id. `path`: of both fields."""
    return ImageUrl(url, f"{path}.{url_field}") if url is not None else ImageFileId(file_id or "", f"{path}.file_id")
