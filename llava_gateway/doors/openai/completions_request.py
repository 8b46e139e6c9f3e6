"""OpenAI's plain completion request, after `CreateCompletionRequest`, with images as an extension."""

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from llava_gateway.chat import CompletionRequest, ImageUrl, InPlace
from llava_gateway.doors.openai.sampling import ASPECT_RATIO, VLLM_REFUSED, SamplingFields, TokenId
from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import AspectRatio
from llava_gateway.web.fields import TAG, ImageString, Refused

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


def to_images(images: list[str | InPlace] | None) -> tuple[ImageUrl, ...]:
    return tuple(ImageUrl(url, f"images[{index}]") for index, url in enumerate(images or ()))
