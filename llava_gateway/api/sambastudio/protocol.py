"""The request bodies of SambaStudio's APIs, and how their prompts become the core's `ChatRequest`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from llava_gateway.api.sambastudio.params import Params, within
from llava_gateway.api.schema import TAG, ImageString, Refused, RequestBody, Strict
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import loads
from llava_gateway.prompts.templates import CURIOUS_HUMAN
from llava_gateway.types import BodySlice, ChatRequest, ImageBase64, Message, Text

MAX_PROMPTS = 128
MAX_IMAGES = 1024
MAX_MESSAGES = 2048


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    path: str
    """Where the text stands in the client's request, for error messages."""
    images: tuple[ImageBase64, ...] = ()
    id: str = ""
    """What a v2 client calls it."""


def _images_tag(images: Any) -> str:
    return TAG + "several" if isinstance(images, list) else TAG + "one"


_Images = Annotated[
    Annotated[ImageString, Tag(TAG + "one")]
    | Annotated[list[ImageString], Field(max_length=MAX_IMAGES, fail_fast=True), Tag(TAG + "several")],
    Discriminator(_images_tag),
]


class Instance(Strict):
    prompt: str = Field(description="what the user says; it may be empty beside an image")
    image_content: _Images | None = Field(
        None, description="a picture in base64 (a data: URI is forgiven); an extension: a list of several, seen in its order"
    )


def _instance_tag(instance: Any) -> str | None:
    if isinstance(instance, dict):
        return TAG + "object"
    return TAG + "text" if isinstance(instance, str | BodySlice) else None


_Instance = Annotated[
    Annotated[str, Tag(TAG + "text")] | Annotated[Instance, Tag(TAG + "object")],
    Discriminator(_instance_tag, custom_error_type="instance", custom_error_message="must be text, or an object with prompt"),
]


class Item(Strict):
    id: str | None = Field(None, max_length=256, description="comes back with the answer; default: the item's index")
    value: _Instance = Field(description="as an instance of v1: text, or an object with `prompt` and `image_content`")


class Body(RequestBody):
    """What the bodies have in common."""

    params: dict[str, Any] | None = Field(None, max_length=100, description="how answers are drawn, see below")

    holder: ClassVar[str]
    """The field that has the prompts."""

    def prompts(self) -> list[Prompt]:
        raise NotImplementedError


class InstancesBody(Body):
    """API v1, whole answers."""

    holder: ClassVar = "instances"
    instances: list[_Instance] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} prompts, answered together: texts, or objects with `prompt`",
    )

    def prompts(self) -> list[Prompt]:
        return [_prompt(instance, f"instances[{index}]") for index, instance in enumerate(self.instances)]


class InstanceBody(Body):
    """API v1, a stream."""

    holder: ClassVar = "instance"
    instance: _Instance = Field(description="the prompt: text, or an object with `prompt`")

    def prompts(self) -> list[Prompt]:
        return [_prompt(self.instance, "instance")]


class ItemsBody(Body):
    """API v2."""

    holder: ClassVar = "items"
    items: list[Item] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} prompts, answered together; a stream is of one",
    )

    def prompts(self) -> list[Prompt]:
        return [
            _prompt(item.value, f"items[{index}].value", str(index) if item.id is None else item.id)
            for index, item in enumerate(self.items)
        ]


class InputsBody(Body):
    """The older NLP API."""

    holder: ClassVar = "inputs"
    inputs: list[str] = Field(
        min_length=1,
        max_length=MAX_PROMPTS,
        fail_fast=True,
        description=f"1 to {MAX_PROMPTS} prompts of text, answered together; a stream is of one",
    )

    def prompts(self) -> list[Prompt]:
        return [Prompt(text, f"inputs[{index}]") for index, text in enumerate(self.inputs)]


class Turn(Strict):
    role: Literal["system", "user", "assistant"] = Field(description="system, user or assistant")
    content: str | None = Field(None, description="text; it may be empty")


class Conversation(RequestBody):
    """What a prompt holds, as JSON, with `process_prompt`."""

    messages: Annotated[list[Turn], Field(max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="the turns so far, one of the user's among them; the images go with the user's first"
    )

    refused: ClassVar = {"tools": Refused("this model calls no tools"), "tool_choice": Refused("this model calls no tools")}
    ignored: ClassVar = {"conversation_id": "nothing is kept between requests"}


def to_chat(prompt: Prompt, params: Params, model: str, *, stream: bool) -> ChatRequest:
    """The core's request. InvalidRequest for a prompt that asks nothing, or that is no conversation where it has to be one."""
    turns = _conversation(prompt) if params.process_prompt else [Turn(role="user", content=prompt.text)]
    if not any(turn.role == "user" for turn in turns) or not (prompt.images or any(turn.content for turn in turns)):
        raise InvalidRequest(f"{prompt.path}: the user has to say or to show something.", param=prompt.path)
    return ChatRequest(
        model=model,
        messages=_messages(turns, prompt.images),
        param=prompt.path,
        template=params.preprocessing,
        sampling=params.sampling(),
        stream=stream,
    )


def _conversation(prompt: Prompt) -> Sequence[Turn]:
    try:
        conversation = loads(prompt.text.encode())
    except InvalidRequest:
        conversation = None
    if not isinstance(conversation, dict):
        raise InvalidRequest(f"{prompt.path}: must be a JSON object with messages, as process_prompt says.", param=prompt.path)
    with within(prompt.path):
        return Conversation.parse(conversation).messages


def _messages(turns: Sequence[Turn], images: tuple[ImageBase64, ...]) -> tuple[Message, ...]:
    messages = [] if any(turn.role == "system" for turn in turns) else [Message("system", (Text(CURIOUS_HUMAN),))]
    for turn in turns:
        text = (Text(turn.content),) if turn.content else ()
        if turn.role == "user":
            messages.append(Message("user", (*images, *text)))
            images = ()
        else:
            messages.append(Message(turn.role, text))
    return tuple(messages)


def _prompt(instance: Instance | str, path: str, name: str = "") -> Prompt:
    if isinstance(instance, str):
        return Prompt(instance, path, id=name)
    given, where = instance.image_content, f"{path}.image_content"
    if isinstance(given, list):
        images = tuple(ImageBase64(image, f"{where}[{index}]") for index, image in enumerate(given))
    else:
        images = () if given is None else (ImageBase64(given, where),)
    return Prompt(instance.prompt, f"{path}.prompt", images, name)
