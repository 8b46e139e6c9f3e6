"""Ollama's messages, and their translation to the gateway's messages.

A message has its images beside its text. A placeholder `[img]` in the text says where an image belongs.
"""

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llava_gateway.api.openai.messages import MAX_MESSAGES, MAX_PARTS, check_counts, to_arguments
from llava_gateway.api.schema import ImageString, StrictModel
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import BodySlice, ImageBase64, ImageSource, Message, Text, ToolCall, has_text_before_image

PLACEHOLDER = "[img]"
_NUMBERED_PLACEHOLDER = re.compile(r"\[img(?:-([0-9]{1,4}))?\]")
"""A placeholder in a raw prompt. `[img-0]` is the place of the first image."""
Images = Annotated[list[ImageString], Field(max_length=MAX_PARTS, fail_fast=True)]


def _lower(role: Any) -> Any:
    role = role.lower() if isinstance(role, str) else role
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError("must be system, user, assistant or tool")
    return role


class CalledFunction(StrictModel):
    name: str = Field(min_length=1, max_length=64)
    arguments: dict[str, Any] | str | None = None


class CalledTool(StrictModel):
    id: str | None = None
    function: CalledFunction


class OllamaMessage(StrictModel):
    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_lower)]
    content: str | None = None
    images: Images | None = None
    tool_calls: list[CalledTool] | None = Field(None, max_length=MAX_PARTS, fail_fast=True)
    tool_name: str | None = None
    tool_call_id: str | None = None


Messages = Annotated[
    list[OllamaMessage],
    Field(max_length=MAX_MESSAGES, fail_fast=True),
    BeforeValidator(lambda messages: check_counts(messages, "images", "tool_calls")),
]


def to_messages(messages: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """Return the gateway's messages. Raises InvalidRequest for arguments of a call that are nested too deeply."""
    calls = _CallIds()
    return tuple(_to_message(message, f"messages[{index}]", calls) for index, message in enumerate(messages))


def to_parts(text: str, images: Sequence[str | BodySlice], path: str) -> tuple[Text | ImageSource, ...]:
    """Return the parts of a message.

    Each `[img]` is the place of one image. Images without a place come before the text. `path`: of the images in the client's request.
    """
    sources = to_images(images, path)
    first, *others = text.split(PLACEHOLDER, len(sources))
    parts: list[Text | ImageSource] = [*sources[len(others) :], Text(first)]
    for source, piece in zip(sources, others, strict=False):
        parts += [source, Text(piece)]
    return tuple(part for part in parts if not isinstance(part, Text) or part.text)


def to_raw_prompt(prompt: str, images: Sequence[str | BodySlice], image_token: str) -> tuple[str, tuple[ImageBase64, ...]]:
    """Return a raw prompt with the model's image token for each image, and the images in the order of these tokens.

    `[img]` is the place of the next image, and `[img-N]` that of image N. Images without a place come first. Raises InvalidRequest.
    """
    sources = to_images(images, "images")
    if not sources or prompt.count(image_token) == len(sources):
        return prompt, sources
    texts, numbers = _NUMBERED_PLACEHOLDER.split(prompt)[::2], _NUMBERED_PLACEHOLDER.findall(prompt)
    placed = [int(number) if number else index for index, number in enumerate(numbers)]
    if image_token in prompt or len(set(placed)) < len(placed) or any(number >= len(sources) for number in placed):
        raise InvalidRequest("prompt: must have one placeholder, such as [img-0], for each image.", param="prompt")
    rest = [number for number in range(len(sources)) if number not in placed]
    return image_token * len(rest) + image_token.join(texts), tuple(sources[number] for number in (*rest, *placed))


def to_images(images: Sequence[str | BodySlice] | None, path: str) -> tuple[ImageBase64, ...]:
    """Return the gateway's images. `path`: of the list in the client's request."""
    return tuple(ImageBase64(image, f"{path}[{index}]") for index, image in enumerate(images or ()))


class _CallIds:
    """The ids of calls that have no result yet. Ollama's messages may leave ids out: names and the order of results take their place."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}
        """The name of each call by its id."""
        self._by_name: defaultdict[str, deque[str]] = defaultdict(deque)
        self._count = 0

    def add(self, call: CalledTool) -> str:
        """Return the id of a call."""
        self._count += 1
        call_id = call.id or f"call_{self._count}"
        self._open[call_id] = call.function.name
        self._by_name[call.function.name].append(call_id)
        return call_id

    def of_result(self, message: OllamaMessage) -> str:
        """Return the id of the call that a message of the role tool answers. Empty if there is no such call."""
        call_id = message.tool_call_id or self._next(message.tool_name)
        self._open.pop(call_id, None)
        return call_id

    def _next(self, name: str | None) -> str:
        """Return the id of the next call without a result, among those of a name if there is one. Empty if there is none."""
        if not name:
            return next(iter(self._open), "")
        ids = self._by_name[name]
        while ids and ids[0] not in self._open:
            ids.popleft()
        return ids[0] if ids else ""


def _to_message(message: OllamaMessage, path: str, ids: _CallIds) -> Message:
    parts = to_parts(message.content or "", message.images or (), f"{path}.images")
    if message.role == "tool":
        return Message("tool", parts, tool_call_id=ids.of_result(message))
    in_place = has_text_before_image(parts)
    if message.role != "assistant":
        return Message(message.role, parts, images_in_place=in_place)
    calls = tuple(
        ToolCall(
            ids.add(call), call.function.name, to_arguments(call.function.arguments or {}, f"{path}.tool_calls[{index}].function.arguments")
        )
        for index, call in enumerate(message.tool_calls or ())
    )
    return Message("assistant", parts, calls, images_in_place=in_place)
