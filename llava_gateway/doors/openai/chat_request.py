"""OpenAI's chat completion request: after its `CreateChatCompletionRequest`, and turned into the core's `ChatRequest`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from llava_gateway.chat import ChatRequest, ImageUrl, Message, Role, Text
from llava_gateway.doors.openai.fields import Refused, Strict
from llava_gateway.doors.openai.sampling import VLLM_REFUSED, SamplingFields
from llava_gateway.errors import InvalidRequest


class ImageReference(Strict):
    url: str = Field(min_length=1, description="an http(s) URL, or a data: URI in base64")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="ignored: every image is seen whole, in 576 tokens for LLaVA-1.5"
    )


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageReference


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return {"text": "~text", "image_url": "~image"}.get(kind) if isinstance(kind, str) else None


def _content_tag(content: Any) -> str:
    return "~string" if isinstance(content, str) else "~parts"


_UserPart = Annotated[Annotated[TextPart, Tag("~text")] | Annotated[ImagePart, Tag("~image")], Discriminator(_part_tag)]
_UserContent = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[_UserPart], Field(fail_fast=True), Tag("~parts")], Discriminator(_content_tag)
]
_TextContent = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("~parts")], Discriminator(_content_tag)
]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(Strict):
    role: Literal["user"]
    content: _UserContent


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: _TextContent | None = None


def _role_tag(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    return {"user": "~user", "assistant": "~assistant"}.get(role if isinstance(role, str) else "", "~system")


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("~system")] | Annotated[UserMessage, Tag("~user")] | Annotated[AssistantMessage, Tag("~assistant")],
    Discriminator(_role_tag),
]


class ChatCompletionRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str = Field(description="the served model's id, as /v1/models names it; another one is 404 `model_not_found`")
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] = Field(
        description="roles system, developer (the same), user and assistant; images in user messages"
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="most tokens of an answer; default: `--default-max-tokens`")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which wins")
    logprobs: bool | None = Field(None, description="log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="0 to 20 of the likeliest tokens in each place; needs logprobs")

    refused: ClassVar = {
        "tools": Refused("this model calls no tools"),
        "tool_choice": Refused("this model calls no tools", unless=(None, "none", "auto")),
        "functions": Refused("this model calls no functions"),
        "function_call": Refused("this model calls no functions", unless=(None, "none", "auto")),
        "audio": Refused("this model does not speak"),
        "modalities": Refused("this model writes text", unless=(None, [], ["text"])),
        "web_search_options": Refused("this server does not search the web", unless=(None,)),
        "add_generation_prompt": Refused("the prompt always asks for the next message", unless=(None, True)),
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
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return ChatRequest(
        model=request.model,
        messages=to_messages(request.messages),
        sampling=request.sampling(
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        ),
        stream=bool(request.stream),
    )


def to_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: SystemMessage | UserMessage | AssistantMessage, path: str) -> Message:
    content = message.content
    parts: list[Text | ImageUrl] = []
    if isinstance(content, str):
        parts = [Text(content)] if content else []
    else:
        for index, part in enumerate(content or ()):
            if isinstance(part, TextPart):
                parts.append(Text(part.text))
            else:
                parts.append(ImageUrl(part.image_url.url, f"{path}.content[{index}].image_url.url"))
    if not parts and message.role == "user":
        raise InvalidRequest("A user message needs some content.", param=f"{path}.content")
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, tuple(parts))
