"""OpenAI's chat completion request: what is taken, checked strictly, and turned into the core's `ChatRequest`.

Field by field after OpenAI's `CreateChatCompletionRequest`. Unknown fields are ignored, since SDKs send new ones; fields that ask for
something this server cannot do are refused, never ignored.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from llava_gateway.chat import ChatRequest, ImageUrl, Message, Role, Sampling, Text
from llava_gateway.errors import InvalidRequest

UNSUPPORTED = {
    "tools": "this model calls no tools",
    "functions": "this model calls no functions",
    "audio": "this model does not speak",
    "web_search_options": "this server does not search the web",
    "chat_template": "the server's template is used",
    "mm_processor_kwargs": "the server's image transform is used",
    "media_io_kwargs": "the server's image transform is used",
} | dict.fromkeys(
    (
        "logprobs", "top_logprobs", "prompt_logprobs", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids",
        "bad_words", "allowed_token_ids", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "echo",
        "continue_final_message", "truncate_prompt_tokens", "priority", "vllm_xargs",
    ),
    "this version does not have it",
)  # fmt: skip
"""Refused unless null, false, zero or empty: they would change the answer."""
INT64 = 2**63


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Image(_Part):
    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] | None = None


class _TextPart(_Part):
    type: Literal["text"]
    text: str


class _ImagePart(_Part):
    type: Literal["image_url"]
    image_url: _Image


# Tags stand in pydantic's error locations; the tilde lets `_path` leave them out.
def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return {"text": "~text", "image_url": "~image"}.get(kind) if isinstance(kind, str) else None


def _content_tag(content: Any) -> str:
    return "~string" if isinstance(content, str) else "~parts"


_StopString = Annotated[str, Field(min_length=1)]
_Stop = Annotated[
    Annotated[_StopString, Tag("~string")] | Annotated[list[_StopString], Field(max_length=4, fail_fast=True), Tag("~parts")],
    Discriminator(_content_tag),
]
_UserPart = Annotated[Annotated[_TextPart, Tag("~text")] | Annotated[_ImagePart, Tag("~image")], Discriminator(_part_tag)]
_UserContent = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[_UserPart], Field(fail_fast=True), Tag("~parts")], Discriminator(_content_tag)
]
_TextContent = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[_TextPart], Field(fail_fast=True), Tag("~parts")], Discriminator(_content_tag)
]


class _SystemMessage(_Part):
    role: Literal["system", "developer"]
    content: _TextContent


class _UserMessage(_Part):
    role: Literal["user"]
    content: _UserContent


class _AssistantMessage(_Part):
    role: Literal["assistant"]
    content: _TextContent | None = None


def _role_tag(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    return {"user": "~user", "assistant": "~assistant"}.get(role if isinstance(role, str) else "", "~system")


_Message = Annotated[
    Annotated[_SystemMessage, Tag("~system")] | Annotated[_UserMessage, Tag("~user")] | Annotated[_AssistantMessage, Tag("~assistant")],
    Discriminator(_role_tag),
]


class _StreamOptions(_Part):
    include_usage: bool | None = None


class ChatCompletionRequest(_Part):
    """The fields that are honoured."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=16)
    stop: _Stop | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    ignore_eos: bool | None = None  # vLLM's extension
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def parse(body: dict[str, Any]) -> ChatCompletionRequest:
    """InvalidRequest, with the path of the field, for whatever is wrong."""
    for name, why in UNSUPPORTED.items():
        if body.get(name):
            raise InvalidRequest(f"{name} is not supported: {why}.", param=name)
    try:
        request = ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _path(first["loc"])
        raise InvalidRequest(f"{param}: {_explain(first)}.", param=param) from None
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    for name, only in (("response_format", {"type": "text"}), ("modalities", ["text"]), ("tool_choice", "none")):
        if body.get(name) not in (None, only, "auto"):
            raise InvalidRequest(f"{name} is not supported, except {json.dumps(only)}.", param=name)
    if (request.seed or 0) + (request.n or 1) > INT64:
        raise InvalidRequest("seed: must leave room for one seed per choice below 2**63.", param="seed")
    return request


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """The core's request. InvalidRequest for a user message without content."""
    return ChatRequest(
        model=request.model,
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(request.messages)),
        sampling=Sampling(
            max_tokens=request.max_completion_tokens or request.max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            n=request.n or 1,
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            seed=request.seed,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            ignore_eos=bool(request.ignore_eos),
        ),
        stream=bool(request.stream),
    )


def _message(message: _SystemMessage | _UserMessage | _AssistantMessage, path: str) -> Message:
    content = message.content
    parts: list[Text | ImageUrl] = []
    if isinstance(content, str):
        parts = [Text(content)] if content else []
    else:
        for index, part in enumerate(content or ()):
            if isinstance(part, _TextPart):
                parts.append(Text(part.text))
            else:
                parts.append(ImageUrl(part.image_url.url, f"{path}.content[{index}].image_url.url"))
    if not parts and message.role == "user":
        raise InvalidRequest("A user message needs some content.", param=f"{path}.content")
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, tuple(parts))


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "union_tag_not_found":
        return "must be an object of type text or image_url"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    if error["loc"][-1] == "role":
        return "must be system, developer, user or assistant"
    return error["msg"]


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].image_url.url`, from pydantic's location with its tags."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("~"):
            path += f".{step}" if path else step
    return path
