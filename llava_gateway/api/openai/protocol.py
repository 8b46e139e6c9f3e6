"""The request bodies of `/v1/chat/completions` and `/v1/completions`, and how they become the gateway's requests.

They are declared after OpenAI's `CreateChatCompletionRequest` and `CreateCompletionRequest`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from llava_gateway.api.openai.messages import Messages, to_messages
from llava_gateway.api.openai.sampling import ASPECT_RATIO, VLLM_REFUSED, SamplingFields, TokenId
from llava_gateway.api.schema import TAG_PREFIX, ImageString, RefusedField
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import built_in
from llava_gateway.settings import AspectRatio
from llava_gateway.types import BodySlice, ChatRequest, CompletionRequest, ImageUrl, Message

MODEL = "the id of a served model, as in /v1/models; another id gives 404 `model_not_found`"
NO_TOOLS = "the model cannot call tools"
NO_FUNCTIONS = "the model cannot call functions"
NOTHING_STORED = "nothing is stored"
NO_EFFECT = "it has no effect on the answer"


class ChatCompletionRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str = Field(description=MODEL)
    messages: Messages = Field(
        description="the roles are system, developer (the same as system), user and assistant; user messages may have images"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="the maximum number of tokens in an answer; default: `--default-max-tokens`"
    )
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which is used if both are sent")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    chat_template: str | None = Field(None, description="the name of a built-in template (see docs/dialects.md), not Jinja source")
    continue_final_message: bool | None = Field(None, description="vLLM's: continue the last message, which must be the assistant's")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: must be the opposite of continue_final_message")
    logprobs: bool | None = Field(None, description="return the log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="return the 0 to 20 likeliest tokens at each position of the answer; only with logprobs"
    )

    refused: ClassVar = {
        "tools": RefusedField(NO_TOOLS),
        "tool_choice": RefusedField(NO_TOOLS, allowed_values=(None, "none")),
        "functions": RefusedField(NO_FUNCTIONS),
        "function_call": RefusedField(NO_FUNCTIONS, allowed_values=(None, "none")),
        "audio": RefusedField("the model cannot produce audio"),
        "modalities": RefusedField("the model produces only text", allowed_values=(None, [], ["text"])),
        "web_search_options": RefusedField("the server does not search the web", allowed_values=(None,)),
        "add_special_tokens": RefusedField("the chat template writes the whole prompt"),
    } | VLLM_REFUSED
    ignored: ClassVar = {
        "parallel_tool_calls": "the model does not call tools",
        "prediction": "it changes the speed of an answer, not the answer",
        "reasoning_effort": "the model has no reasoning step",
        "verbosity": "the model has only one level",
        "service_tier": "the server has only one tier",
        "store": NOTHING_STORED,
        "metadata": NOTHING_STORED,
        "user": NO_EFFECT,
        "safety_identifier": NO_EFFECT,
        "prompt_cache_key": "the prefix cache finds prompts by their content",
        "prompt_cache_retention": "the prefix cache keeps as much as fits",
    }


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """Return the gateway's request. Raises InvalidRequest for contradictory fields and for a user message without content."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs: true.", param="top_logprobs")
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


def check_continuation(continue_final_message: bool | None, add_generation_prompt: bool | None, messages: Sequence[Message]) -> None:
    """Raise InvalidRequest unless the request asks either for a continued or for a new message of the assistant."""
    if continue_final_message and messages[-1].role != "assistant":
        raise InvalidRequest("continue_final_message requires that the last message is the assistant's.", param="continue_final_message")
    if add_generation_prompt is not None and add_generation_prompt == bool(continue_final_message):
        raise InvalidRequest(
            "add_generation_prompt must be the opposite of continue_final_message; leave it out.", param="add_generation_prompt"
        )


DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for text completions."""
MAX_PROMPTS = 128
AS_IT_IS = "the prompt goes to the model unchanged"


def _prompt_tag(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return TAG_PREFIX + "text"
    first = prompt[0] if prompt else None
    return TAG_PREFIX + ("texts" if isinstance(first, str) else "token_lists" if isinstance(first, list) else "tokens")


_Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 16, fail_fast=True)]
_Prompt = Annotated[
    Annotated[str, Tag(TAG_PREFIX + "text")]
    | Annotated[_Tokens, Tag(TAG_PREFIX + "tokens")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag(TAG_PREFIX + "texts")]
    | Annotated[list[_Tokens], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag(TAG_PREFIX + "token_lists")],
    Discriminator(_prompt_tag),
]
Images = Annotated[list[ImageString], Field(max_length=1024, fail_fast=True)]


class TextCompletionRequest(SamplingFields):
    """`POST /v1/completions`."""

    model: str = Field(description=MODEL)
    prompt: _Prompt = Field(
        description=f"text, token ids, or a list of up to {MAX_PROMPTS} of either; it goes to the model unchanged, control tokens included"
    )
    images: Images | None = Field(
        None, description="an extension: http(s) URLs or data: URIs in base64, one for each `<image>` in the prompt; only with one prompt"
    )
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    max_tokens: int | None = Field(
        None, ge=1, description=f"the maximum number of tokens in an answer; default {DEFAULT_MAX_TOKENS}, or min_tokens if that is more"
    )
    logprobs: int | None = Field(
        None, ge=0, le=5, description="return log probabilities, and the 0 to 5 likeliest tokens at each position of the answer"
    )
    add_special_tokens: bool | None = Field(None, description="vLLM's: begin a text with the model's `<s>`; default true")

    refused: ClassVar = {
        "suffix": RefusedField("the model cannot fill in text before a suffix"),
        "best_of": RefusedField("every choice is returned; use n", allowed_values=(None, 1)),
        "chat_template": RefusedField(AS_IT_IS),
        "continue_final_message": RefusedField(AS_IT_IS),
    } | VLLM_REFUSED
    ignored: ClassVar = {"user": NO_EFFECT}


def to_completions(request: TextCompletionRequest) -> list[CompletionRequest]:
    """Return the gateway's requests, one for each prompt. Raises InvalidRequest for contradictory fields."""
    prompts = _prompts(request.prompt)
    if len(prompts) > 1 and (request.images or request.stream):
        raise InvalidRequest("Images and streams are only possible with one prompt; send one request for each prompt.", param="prompt")
    sampling = request.sampling(
        max_tokens=request.max_tokens or max(DEFAULT_MAX_TOKENS, request.min_tokens or 0), logprobs=request.logprobs
    )
    return [
        CompletionRequest(
            model=request.model,
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            param=f"prompt[{index}]" if len(prompts) > 1 else "prompt",
            images=to_images(request.images),
            image_aspect_ratio=request.image_aspect_ratio,
            add_special_tokens=request.add_special_tokens is not False,
            sampling=sampling,
            stream=bool(request.stream),
        )
        for index, prompt in enumerate(prompts)
    ]


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Return the field `prompt` as a list of texts and lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [each for each in prompt if not isinstance(each, int)]


def to_images(images: list[str | BodySlice] | None) -> tuple[ImageUrl, ...]:
    """Return the field `images` as the gateway's images."""
    return tuple(ImageUrl(url, f"images[{index}]") for index, url in enumerate(images or ()))
