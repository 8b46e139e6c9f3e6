"""The request body of `/v1/completions`, and its translation to the gateway's requests.

It is declared after OpenAI's `CreateCompletionRequest`.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from llava_gateway.api.openai.sampling import ASPECT_RATIO, NO_EFFECT, VLLM_IGNORED, VLLM_REFUSED, CompletionFields, TokenId
from llava_gateway.api.schema import TAG_PREFIX, ImageString, RefusedField, VideoString
from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import AspectRatio
from llava_gateway.types import BodySlice, CompletionRequest, ImageUrl, SamplingParams, VideoUrl

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
Videos = Annotated[list[VideoString], Field(max_length=1024, fail_fast=True)]


class TextCompletionRequest(CompletionFields):
    """`POST /v1/completions`."""

    prompt: _Prompt = Field(
        description=f"text, token ids, or a list of up to {MAX_PROMPTS} of either; it goes to the model unchanged, control tokens included"
    )
    images: Images | None = Field(
        None, description="an extension: http(s) URLs or data: URIs in base64, one for each `<image>` in the prompt; only with one prompt"
    )
    videos: Videos | None = Field(
        None, description="an extension: http(s) URLs or data: URIs in base64, one for each `<video>` in the prompt; only with one prompt"
    )
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    max_tokens: int | None = Field(
        None,
        ge=0,
        description=f"the maximum number of tokens in an answer, 0 to score the prompt; default {DEFAULT_MAX_TOKENS}, or min_tokens",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="return log probabilities: at each position those of the token and of the 0 to 20 likeliest tokens",
    )
    echo: bool | None = Field(
        None, description="begin the answer with the prompt; with logprobs, the prompt's tokens have log probabilities"
    )
    best_of: int | None = Field(None, description="has no effect, and must be n or 1: every choice is returned")
    add_special_tokens: bool | None = Field(None, description="vLLM's: begin a text with the model's `<s>`; default true")

    refused: ClassVar = {
        "suffix": RefusedField("the model cannot fill in text before a suffix"),
        "chat_template": RefusedField(AS_IT_IS),
        "continue_final_message": RefusedField(AS_IT_IS),
    } | VLLM_REFUSED
    ignored: ClassVar = {"user": NO_EFFECT, "chat_template_kwargs": AS_IT_IS} | VLLM_IGNORED


def to_completions(request: TextCompletionRequest) -> list[CompletionRequest]:
    """Return the gateway's requests, one for each prompt. Raises InvalidRequest for contradictory fields."""
    prompts = _prompts(request.prompt)
    if len(prompts) > 1 and (request.images or request.videos):
        medium = "Images" if request.images else "Videos"
        raise InvalidRequest(f"{medium} are only possible with one prompt; send one request for each prompt.", param="prompt")
    if request.best_of not in (None, 1, request.n or 1):
        raise InvalidRequest("best_of must equal n: every choice is returned.", param="best_of")
    sampling = _sampling(request)
    return [
        CompletionRequest(
            model=request.model,
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            param=f"prompt[{index}]" if len(prompts) > 1 else "prompt",
            images=to_images(request.images),
            videos=to_videos(request.videos),
            image_aspect_ratio=request.image_aspect_ratio,
            cache_salt=request.cache_salt,
            add_special_tokens=request.add_special_tokens is not False,
            sampling=sampling,
            stream=bool(request.stream),
        )
        for index, prompt in enumerate(prompts)
    ]


def _sampling(request: TextCompletionRequest) -> SamplingParams:
    """Return the sampling parameters. An echo with log probabilities has those of the prompt and of every token of the answer.

    Programs that score prompts count the answer's tokens from the end, so the token that ended the answer is among them, too.
    """
    default = max(DEFAULT_MAX_TOKENS, request.min_tokens or 0)
    max_tokens = default if request.max_tokens is None else request.max_tokens
    sampling = request.sampling(max_tokens=max_tokens, logprobs=request.logprobs)
    if not request.echo or request.logprobs is None:
        return sampling
    return dataclasses.replace(sampling, prompt_logprobs=max(request.logprobs, request.prompt_logprobs or 0), include_stop_token=True)


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


def to_videos(videos: list[str | BodySlice] | None) -> tuple[VideoUrl, ...]:
    """Return the field `videos` as the gateway's videos."""
    return tuple(VideoUrl(url, f"videos[{index}]") for index, url in enumerate(videos or ()))
