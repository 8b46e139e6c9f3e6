"""OpenAI's chat completion request: after its `CreateChatCompletionRequest`, and turned into the core's `ChatRequest`."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from llava_gateway.api.openai.messages import Messages, to_messages
from llava_gateway.api.openai.sampling import ASPECT_RATIO, VLLM_REFUSED, SamplingFields, TokenId, TokenIds
from llava_gateway.api.schema import TAG, ImageString, Refused, RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import JsonBody
from llava_gateway.prompts.templates import built_in
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import AspectRatio
from llava_gateway.types import BodySlice, ChatRequest, CompletionRequest, ImageUrl, Message


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


DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for plain completions."""
MAX_PROMPTS = 128


def _prompt_tag(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return TAG + "text"
    first = prompt[0] if prompt else None
    return TAG + "texts" if isinstance(first, str) else TAG + "token_lists" if isinstance(first, list) else TAG + "tokens"


_Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 16, fail_fast=True)]
_Prompt = Annotated[
    Annotated[str, Tag(TAG + "text")]
    | Annotated[_Tokens, Tag(TAG + "tokens")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag(TAG + "texts")]
    | Annotated[list[_Tokens], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag(TAG + "token_lists")],
    Discriminator(_prompt_tag),
]
Images = Annotated[list[ImageString], Field(max_length=1024, fail_fast=True)]


class TextCompletionRequest(SamplingFields):
    """`POST /v1/completions`."""

    model: str = Field(description="the served model's id, as /v1/models names it; another one is 404 `model_not_found`")
    prompt: _Prompt = Field(
        description=f"text, or token ids, or up to {MAX_PROMPTS} of either; it goes to the model as it is, control tokens and all"
    )
    images: Images | None = Field(
        None, description="an extension: http(s) URLs or data: URIs in base64, one for each `<image>` in the prompt; one prompt only"
    )
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    max_tokens: int | None = Field(None, ge=1, description=f"default {DEFAULT_MAX_TOKENS}")
    logprobs: int | None = Field(None, ge=0, le=5, description="log probabilities, and 0 to 5 of the likeliest tokens in each place")
    add_special_tokens: bool | None = Field(None, description="vLLM's: begin a text with the model's `<s>`; default true")

    refused: ClassVar = {
        "suffix": Refused("this model does not fill in"),
        "best_of": Refused("every choice is sent: use n", unless=(None, 1)),
        "chat_template": Refused("the prompt goes to the model as it is"),
        "continue_final_message": Refused("the prompt goes to the model as it is"),
    } | VLLM_REFUSED
    ignored: ClassVar = {"user": "nothing depends on it"}


def to_completions(request: TextCompletionRequest) -> list[CompletionRequest]:
    """The core's requests, one for each prompt."""
    given = request.prompt
    prompts: list[str | list[int]]
    if isinstance(given, str):
        prompts = [given]
    elif isinstance(given[0], int):
        prompts = [[token for token in given if isinstance(token, int)]]
    else:
        prompts = [prompt for prompt in given if not isinstance(prompt, int)]
    if len(prompts) > 1 and (request.images or request.stream):
        raise InvalidRequest("Images and streams go with one prompt; send a request for each prompt.", param="prompt")
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


def to_images(images: list[str | BodySlice] | None) -> tuple[ImageUrl, ...]:
    return tuple(ImageUrl(url, f"images[{index}]") for index, url in enumerate(images or ()))


_TEMPLATE = {name: VLLM_REFUSED[name] for name in ("chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")}


class TokenizeRequest(RequestBody):
    """`POST /tokenize`: either `messages` or `prompt`."""

    model: str | None = Field(None, description="the served model's id; none: that one")
    messages: Messages | None = Field(None, description="a chat, as /v1/chat/completions takes it")
    chat_template: str | None = Field(None, description="with `messages`: the name of a built-in template")
    continue_final_message: bool | None = Field(None, description="with `messages`: as /v1/chat/completions takes it")
    add_generation_prompt: bool | None = Field(None, description="with `messages`: as /v1/chat/completions takes it")
    prompt: str | None = Field(None, description="text, as /v1/completions takes it")
    images: Images | None = Field(None, description="with `prompt`: one for each `<image>` in it")
    add_special_tokens: bool | None = Field(None, description="with `prompt`: begin it with the model's `<s>`; default true")
    return_token_strs: bool | None = Field(None, description="name the tokens, too")

    refused: ClassVar = {
        "tools": Refused("this model calls no tools"),
    } | _TEMPLATE


class DetokenizeRequest(RequestBody):
    """`POST /detokenize`."""

    model: str | None = Field(None, description="the served model's id; none: that one")
    tokens: TokenIds = Field(description="token ids")


async def tokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """vLLM's `TokenizeResponse`, and how many of the tokens are images'. Raises GatewayError."""
    asked = TokenizeRequest.read(body)
    model = asked.model if asked.model is not None else gateway.model_name
    request: ChatRequest | CompletionRequest
    if (asked.messages is None) == (asked.prompt is None):
        raise InvalidRequest("Send either messages or prompt.", param="prompt" if asked.messages else "messages")
    if asked.messages is not None:
        for name in ("images", "add_special_tokens"):
            if getattr(asked, name) is not None:
                raise InvalidRequest(f"{name} goes with prompt, not with messages.", param=name)
        if asked.chat_template is not None:
            built_in(asked.chat_template, "chat_template")
        messages = to_messages(asked.messages)
        check_continuation(asked.continue_final_message, asked.add_generation_prompt, messages)
        continues = bool(asked.continue_final_message)
        request = ChatRequest(model=model, messages=messages, template=asked.chat_template, continue_last=continues)
    else:
        add_special_tokens = asked.add_special_tokens is not False
        request = CompletionRequest(
            model=model, prompt=asked.prompt or "", images=to_images(asked.images), add_special_tokens=add_special_tokens
        )
    info = gateway.model(model)
    tokens, image_tokens = await gateway.tokenize(request)
    if asked.return_token_strs and len(tokens) > info.context_length:
        why = (
            f"These are {len(tokens)} tokens, and the model's context is {info.context_length}; longer prompts are counted, but not spelt."
        )
        raise InvalidRequest(why, param="return_token_strs")
    return {
        "count": len(tokens),
        "max_model_len": info.context_length,
        "image_tokens": image_tokens,
        "tokens": tokens,
        "token_strs": [info.tokenizer.token(token) for token in tokens] if asked.return_token_strs else None,
    }


def detokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """vLLM's `DetokenizeResponse`. Raises GatewayError."""
    asked = DetokenizeRequest.read(body)
    info = gateway.model(asked.model if asked.model is not None else gateway.model_name)
    if len(asked.tokens) > info.context_length:
        raise InvalidRequest(f"There are {len(asked.tokens)} tokens; the model's context is {info.context_length}.", param="tokens")
    info.tokenizer.check(asked.tokens, "tokens")
    return {"prompt": info.tokenizer.decode(asked.tokens)}
