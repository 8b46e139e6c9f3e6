"""OpenAI's chat completion request: after its `CreateChatCompletionRequest`, and turned into the core's `ChatRequest`."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from llava_gateway.chat import ChatRequest, ImageBase64, ImageSource, ImageUrl, Message, Role, Text
from llava_gateway.doors.openai.sampling import ASPECT_RATIO, VLLM_REFUSED, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import AspectRatio
from llava_gateway.templates import built_in
from llava_gateway.web.fields import TAG, ImageString, Refused, Strict

MAX_MESSAGES = 2048
MAX_PARTS = 4096


class ImageReference(Strict):
    url: ImageString = Field(description="an http(s) URL, or a data: URI in base64")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="ignored: every image is seen whole, in 576 tokens for LLaVA-1.5"
    )


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageReference


class HuggingFaceImagePart(Strict):
    """As `apply_chat_template` of transformers takes it."""

    type: Literal["image"]
    url: ImageString | None = None
    base64: ImageString | None = None

    @model_validator(mode="after")
    def _one(self) -> "HuggingFaceImagePart":
        if (self.url is None) == (self.base64 is None):
            raise ValueError("must hold either url or base64")
        return self


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return TAG + kind if kind in ("text", "image_url", "image") else None


def _content_tag(content: Any) -> str:
    return TAG + "string" if isinstance(content, str) else TAG + "parts"


_UserPart = Annotated[
    Annotated[TextPart, Tag(TAG + "text")]
    | Annotated[ImagePart, Tag(TAG + "image_url")]
    | Annotated[HuggingFaceImagePart, Tag(TAG + "image")],
    Discriminator(_part_tag, custom_error_type="part", custom_error_message="must be an object of type text, image_url or image"),
]
_UserContent = Annotated[
    Annotated[str, Tag(TAG + "string")] | Annotated[list[_UserPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag(TAG + "parts")],
    Discriminator(_content_tag),
]
_TextContent = Annotated[
    Annotated[str, Tag(TAG + "string")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag(TAG + "parts")],
    Discriminator(_content_tag),
]


def _check_role(role: Any) -> Any:
    if role not in ("system", "developer", "user", "assistant"):
        raise ValueError("must be system, developer, user or assistant")
    return role


class SystemMessage(Strict):
    role: Annotated[Literal["system", "developer"], BeforeValidator(_check_role)]
    content: _TextContent


class UserMessage(Strict):
    role: Literal["user"]
    content: _UserContent


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: _TextContent | None = None


def _role_tag(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    return {"user": TAG + "user", "assistant": TAG + "assistant"}.get(role if isinstance(role, str) else "", TAG + "system")


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag(TAG + "system")]
    | Annotated[UserMessage, Tag(TAG + "user")]
    | Annotated[AssistantMessage, Tag(TAG + "assistant")],
    Discriminator(_role_tag),
]


def _count_parts(messages: Any) -> Any:
    """Before anything else looks at them: a body of some megabytes can hold hundreds of thousands."""
    if isinstance(messages, list):
        parts = sum(
            len(message["content"]) for message in messages if isinstance(message, dict) and isinstance(message.get("content"), list)
        )
        if len(messages) > MAX_MESSAGES or parts > MAX_PARTS:
            raise ValueError(f"must be at most {MAX_MESSAGES} messages, with {MAX_PARTS} parts in all")
    return messages


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(_count_parts)]


class ChatCompletionRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str = Field(description="the served model's id, as /v1/models names it; another one is 404 `model_not_found`")
    messages: Messages = Field(description="roles system, developer (the same), user and assistant; images in user messages")
    max_completion_tokens: int | None = Field(None, ge=1, description="most tokens of an answer; default: `--default-max-tokens`")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which wins")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    chat_template: str | None = Field(None, description="the name of a built-in template (docs/dialects.md), not Jinja")
    continue_final_message: bool | None = Field(None, description="vLLM's: go on with the last message, the assistant's")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: false only with continue_final_message, true only without")
    logprobs: bool | None = Field(None, description="log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="0 to 20 of the likeliest tokens in each place; needs logprobs")

    refused: ClassVar = {
        "tools": Refused("this model calls no tools"),
        "tool_choice": Refused("this model calls no tools", unless=(None, "none")),
        "functions": Refused("this model calls no functions"),
        "function_call": Refused("this model calls no functions", unless=(None, "none")),
        "audio": Refused("this model does not speak"),
        "modalities": Refused("this model writes text", unless=(None, [], ["text"])),
        "web_search_options": Refused("this server does not search the web", unless=(None,)),
        "add_special_tokens": Refused("the prompt is the template's"),
    } | VLLM_REFUSED
    ignored: ClassVar = {
        "parallel_tool_calls": "no tool is called",
        "prediction": "it changes the speed of an answer, not the answer",
        "reasoning_effort": "the model does not reason first",
        "verbosity": "the model has one",
        "service_tier": "there is one",
        "store": "nothing is stored",
        "metadata": "nothing is stored",
        "user": "nothing depends on it",
        "safety_identifier": "nothing depends on it",
        "prompt_cache_key": "the prefix cache finds prompts by their content",
        "prompt_cache_retention": "the prefix cache keeps what fits",
    }


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """The core's request. InvalidRequest for a user message without content."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.chat_template is not None:
        built_in(request.chat_template, "chat_template")
    messages = to_messages(request.messages)
    check_continuation(request.continue_final_message, request.add_generation_prompt, messages)
    return ChatRequest(
        model=request.model,
        messages=messages,
        template=request.chat_template,
        continue_last=bool(request.continue_final_message),
        image_aspect_ratio=request.image_aspect_ratio,
        sampling=request.sampling(
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        ),
        stream=bool(request.stream),
    )


def check_continuation(continues: bool | None, begins: bool | None, messages: Sequence[Message]) -> None:
    """Either more of the last message is asked for or a new one. Raises InvalidRequest."""
    if continues and messages[-1].role != "assistant":
        raise InvalidRequest("continue_final_message needs a last message of the assistant.", param="continue_final_message")
    if begins is not None and begins == bool(continues):
        raise InvalidRequest("add_generation_prompt is true unless continue_final_message is; leave it out.", param="add_generation_prompt")


def to_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: SystemMessage | UserMessage | AssistantMessage, path: str) -> Message:
    content = message.content
    parts: list[Text | ImageSource] = []
    if isinstance(content, str):
        parts = [Text(content)] if content else []
    else:
        for index, part in enumerate(content or ()):
            parts.append(_part(part, f"{path}.content[{index}]"))
    if not parts and message.role == "user":
        raise InvalidRequest("A user message needs some content.", param=f"{path}.content")
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, tuple(parts))


def _part(part: TextPart | ImagePart | HuggingFaceImagePart, path: str) -> Text | ImageSource:
    if isinstance(part, TextPart):
        return Text(part.text)
    if isinstance(part, ImagePart):
        return ImageUrl(part.image_url.url, f"{path}.image_url.url")
    return ImageUrl(part.url, f"{path}.url") if part.url is not None else ImageBase64(part.base64 or "", f"{path}.base64")
