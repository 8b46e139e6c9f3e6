"""The request bodies of SambaStudio's APIs, and how their prompts become the gateway's `ChatRequest`s."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llava_gateway.api.openai.messages import MAX_MESSAGES, Content, check_counts, to_part, to_parts
from llava_gateway.api.sambastudio.params import NO_TOOLS, Params
from llava_gateway.api.schema import (
    LIST,
    ONE,
    ONE_OR_LIST,
    TAG_PREFIX,
    ImageString,
    RefusedField,
    RequestBody,
    StrictModel,
    error_path_prefix,
)
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import CURIOUS_HUMAN
from llava_gateway.types import BodySlice, ChatRequest, ImageBase64, Message, Text

MAX_PROMPTS = 128
MAX_IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request."""

    text: str
    path: str
    """The path of the text in the client's request, for error messages."""
    images: tuple[ImageBase64, ...] = ()
    id: str = ""
    """The client's id for the prompt, in API v2."""


_Images = Annotated[
    Annotated[ImageString, ONE] | Annotated[list[ImageString], Field(max_length=MAX_IMAGES, fail_fast=True), LIST],
    ONE_OR_LIST,
]


class Instance(StrictModel):
    """A prompt with its images."""

    prompt: str = Field(description="the user's message; it may be empty if there is an image")
    image_content: _Images | None = Field(
        None, description="an image file in base64, or in a data: URI; an extension: a list of images, which the model sees in this order"
    )


def _instance_tag(instance: Any) -> str | None:
    if isinstance(instance, dict):
        return TAG_PREFIX + "object"
    return TAG_PREFIX + "text" if isinstance(instance, str | BodySlice) else None


_Instance = Annotated[
    Annotated[str, Tag(TAG_PREFIX + "text")] | Annotated[Instance, Tag(TAG_PREFIX + "object")],
    Discriminator(_instance_tag, custom_error_type="instance", custom_error_message="must be a text, or an object with prompt"),
]


class Item(StrictModel):
    """An instance with an id."""

    id: str | None = Field(None, max_length=256, description="is returned with the answer; default: the item's index")
    value: _Instance = Field(description="like an instance of v1: a text, or an object with `prompt` and `image_content`")


class PredictBody(RequestBody):
    """The fields that the bodies share."""

    params: dict[str, Any] | None = Field(None, max_length=100, description="the sampling parameters, see Params")

    prompts_field: ClassVar[str]
    """The name of the field with the prompts."""

    def prompts(self) -> list[Prompt]:
        """Return the prompts of the request."""
        raise NotImplementedError


class InstancesBody(PredictBody):
    """The body of API v1 for whole answers."""

    prompts_field: ClassVar = "instances"
    instances: list[_Instance] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} prompts, each a text or an object with `prompt`; one response has all answers",
    )

    def prompts(self) -> list[Prompt]:
        return [_prompt(instance, f"instances[{index}]") for index, instance in enumerate(self.instances)]


class InstanceBody(PredictBody):
    """The body of API v1 for streams."""

    prompts_field: ClassVar = "instance"
    instance: _Instance = Field(description="the prompt, a text or an object with `prompt`")

    def prompts(self) -> list[Prompt]:
        return [_prompt(self.instance, "instance")]


class ItemsBody(PredictBody):
    """The body of API v2."""

    prompts_field: ClassVar = "items"
    items: list[Item] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} prompts; one response has all answers; a stream has only one prompt",
    )

    def prompts(self) -> list[Prompt]:
        return [
            _prompt(item.value, f"items[{index}].value", str(index) if item.id is None else item.id)
            for index, item in enumerate(self.items)
        ]


class InputsBody(PredictBody):
    """The body of the older NLP API."""

    prompts_field: ClassVar = "inputs"
    inputs: list[str] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} texts; one response has all answers; a stream has only one prompt",
    )

    def prompts(self) -> list[Prompt]:
        return [Prompt(text, f"inputs[{index}]") for index, text in enumerate(self.inputs)]


class Turn(StrictModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="system, user or assistant")
    content: Content | None = Field(
        None, description="the message's text, which may be empty, or a list of text and image parts as in OpenAI's chats"
    )


class Conversation(RequestBody):
    """The JSON in a prompt if `process_prompt` is true."""

    messages: Annotated[
        list[Turn], Field(max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(lambda turns: check_counts(turns, "content"))
    ] = Field(description="the messages so far, with at least one of the user's; the first of these gets the images")

    refused: ClassVar = {"tools": RefusedField(NO_TOOLS), "tool_choice": RefusedField(NO_TOOLS)}
    ignored: ClassVar = {"conversation_id": "nothing is stored between requests"}


def to_chat(prompt: Prompt, params: Params, model: str, parse: Callable[[bytes], Any], *, stream: bool) -> ChatRequest:
    """Return the gateway's request.

    `parse`: parses the JSON of a conversation. Raises InvalidRequest for an empty prompt, or one that must be a conversation and is not.
    """
    turns = _conversation(prompt, parse) if params.process_prompt else [Turn(role="user", content=prompt.text)]
    if not any(turn.role == "user" for turn in turns) or not (prompt.images or any(turn.content for turn in turns)):
        raise InvalidRequest(f"{prompt.path}: the user must send a text or an image.", param=prompt.path)
    return ChatRequest(
        model=model,
        messages=_messages(turns, prompt),
        param=prompt.path,
        template=params.preprocessing,
        image_aspect_ratio=params.image_aspect_ratio,
        sampling=params.sampling(),
        stream=stream,
    )


def _conversation(prompt: Prompt, parse: Callable[[bytes], Any]) -> Sequence[Turn]:
    try:
        conversation = parse(prompt.text.encode())
    except InvalidRequest:
        conversation = None
    if not isinstance(conversation, dict):
        raise InvalidRequest(f"{prompt.path}: must be a JSON object with messages, since process_prompt is true.", param=prompt.path)
    with error_path_prefix(prompt.path):
        return Conversation.parse(conversation).messages


def _messages(turns: Sequence[Turn], prompt: Prompt) -> tuple[Message, ...]:
    """Return the turns as messages. The prompt's images go into the user's first message. LLaVA's system message is the default."""
    messages = [] if any(turn.role == "system" for turn in turns) else [Message("system", (Text(CURIOUS_HUMAN),))]
    images: tuple[ImageBase64, ...] = prompt.images
    for index, turn in enumerate(turns):
        content = to_parts(turn.content, f"{prompt.path}.messages[{index}].content", to_part)
        if turn.role == "user":
            content, images = (*images, *content), ()
        messages.append(Message(turn.role, content))
    return tuple(messages)


def _prompt(instance: Instance | str, path: str, item_id: str = "") -> Prompt:
    """Return the prompt at `path` in the request."""
    if isinstance(instance, str):
        return Prompt(instance, path, id=item_id)
    content, image_path = instance.image_content, f"{path}.image_content"
    if isinstance(content, list):
        images = tuple(ImageBase64(image, f"{image_path}[{index}]") for index, image in enumerate(content))
    else:
        images = () if content is None else (ImageBase64(content, image_path),)
    return Prompt(instance.prompt, f"{path}.prompt", images, item_id)
