"""From a request to what the engine gets: the prompt's token ids, and an answer's length that fits the model's context."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_gateway.errors import ContextLengthExceeded, InvalidRequest, context_length_exceeded
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer, RenderedPrompt
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.serving.tool_calls import FORMATS, CallFormat, CallFormatName, ToolCallParser
from llava_gateway.serving.tool_grammar import hold_to_calls, hold_to_text_or_calls
from llava_gateway.settings import Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import ChatRequest, PreparedImage, PreparedVideo, Request, SamplingParams, VideoUrl

MAX_CONTEXTS = 16
"""All choices of a request together have at most this many times the tokens of the model's context."""
OR_MORE = " or more"
"""Follows a number of tokens that is a lower bound: clients read the number after "requested" and "resulted in"."""
TAKE_VIDEOS = "LLaVA-OneVision and LLaVA-NeXT-Video"
"""The models that take videos."""


@dataclass(frozen=True, slots=True)
class PreparedMedia:
    """The loaded images and videos of a request."""

    images: tuple[PreparedImage, ...] = ()
    videos: tuple[PreparedVideo, ...] = ()

    @property
    def image_tokens(self) -> list[int]:
        """The number of tokens of each image."""
        return [image.tokens for image in self.images]

    @property
    def video_tokens(self) -> list[int]:
        """The number of tokens of each video."""
        return [video.tokens for video in self.videos]


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request whose prompt is rendered and fits the context. Its images and videos are not loaded yet."""

    request: Request
    served_model: ServedModel
    model: ModelInfo
    prompt: str
    """The prompt's text; empty if the client sent token ids."""
    token_ids: list[int]
    """The prompt's tokens, with one token for each image and each video."""
    tokens: int
    """The prompt's length with images and videos expanded. If the length depends on the images' sizes or on the videos' lengths, this is
    the least possible length until `apply_media_tokens` is called."""
    sampling: SamplingParams
    """The request's parameters, with a `max_tokens` that fits the context."""
    call_format: CallFormat | None = None
    """The form of calls of tools in the answer. None: the answer is text."""
    tools_ignored: bool = False
    """Whether the request's tools were left out."""
    reserved: int = 0
    """Tokens that are reserved at the API key's limit."""

    def tool_calls(self) -> ToolCallParser | None:
        """Return a parser for the answer's calls of tools. None: the answer is text."""
        return ToolCallParser(self.request, self.call_format) if self.call_format and isinstance(self.request, ChatRequest) else None

    @property
    def max_total_tokens(self) -> int:
        """Tokens of the prompt and of all choices at their greatest length. Each of n greedy choices counts, although one is generated."""
        return self.tokens + (self.sampling.max_tokens or 0) * self.request.sampling.n


def can_choose_tools(prompts: PromptRenderer, template: str | None, settings: Settings) -> bool:
    """Return whether the model may choose to call tools: its chat template renders them, or the server writes them into the prompt."""
    return settings.tools_auto == "prompt" or prompts.renders_tools(template)


def without_ignored_tools(request: Request, prompts: PromptRenderer, template: str | None, settings: Settings) -> Request:
    """Return the request without its tools if it leaves a call to the model, and the model cannot choose to call tools."""
    if not isinstance(request, ChatRequest) or not request.tools or request.must_call:
        return request
    if can_choose_tools(prompts, template, settings):
        return request
    return dataclasses.replace(request, tools=())


def prepare(request: Request, served_model: ServedModel, model: ModelInfo, template: str | None, settings: Settings) -> PreparedRequest:
    """Render the prompt and check that it fits. May run in a thread: it does not use the supervisor.

    `model`: from `served_model.info()`. `template`: the name of a built-in chat template, or None for the server's own.
    Raises InvalidRequest.
    """
    usable = without_ignored_tools(request, served_model.prompts, template, settings)
    tools_ignored, request = usable is not request, usable
    asked, images, videos, vision = request.sampling, len(request.images), len(request.videos), model.vision
    if vision.grids and request.image_aspect_ratio:
        raise InvalidRequest("This model sees images in their own shape and makes none square.", param="image_aspect_ratio")
    if not model.takes_images and request.image_aspect_ratio:
        raise InvalidRequest("image_aspect_ratio is for images, and this model takes only videos.", param="image_aspect_ratio")
    check_media(request, model)
    prompt = served_model.prompts.render(request, template)
    _check_tokens(asked, model.tokenizer)
    text_tokens, or_more = len(prompt.token_ids) - images - videos, OR_MORE if videos or (images and vision.grids) else ""
    image_tokens, video_tokens = [vision.min_image_tokens] * images, [_min_video_tokens(model)] * videos
    try:
        tokens, max_tokens = _fit(request, model, text_tokens, image_tokens, video_tokens, settings.default_max_tokens, or_more)
    except ContextLengthExceeded as error:
        raise _with_tool_tokens(error, request, prompt, served_model.prompts, template) from error
    stop = asked.stop + tuple(each for each in prompt.stop if each not in asked.stop)
    defaults: dict[str, Any] = {name: value for name, value in model.default_sampling.items() if name in asked.unset}
    n = 1 if defaults.get("temperature", asked.temperature) == 0 else asked.n
    sampling = dataclasses.replace(asked, max_tokens=max_tokens, n=n, stop=stop, **defaults)
    prepared = PreparedRequest(request, served_model, model, prompt.text, prompt.token_ids, tokens, sampling, tools_ignored=tools_ignored)
    if isinstance(request, ChatRequest) and request.tools:
        return _prepare_calls(prepared, request, template, settings)
    return prepared


def check_media(request: Request, model: ModelInfo) -> None:
    """Check the images and videos before any of them is fetched.

    Raises InvalidRequest for media that the model does not take, and ContextLengthExceeded if the media alone cannot fit the context.
    """
    images, videos, min_image_tokens = request.images, request.videos, model.vision.min_image_tokens
    if videos:
        _check_videos(videos, model)
    if images and not model.takes_images:
        param = images[0].param
        raise InvalidRequest(f"{param}: this model takes videos and no images.", param=param)
    if images and model.max_images is not None and len(images) > model.max_images <= (model.context_length - 1) // min_image_tokens:
        raise InvalidRequest(
            f"The request has {len(images)} images, and this server takes at most {model.max_images} in one request "
            "(its operator can raise --limit-mm-per-prompt).",
            param=request.param,
        )
    min_tokens = len(images) * min_image_tokens + len(videos) * _min_video_tokens(model)
    if min_tokens >= model.context_length:
        name, or_more = _prompt_name(request), OR_MORE if videos or model.vision.grids else ""
        shares = []
        if images:
            greatest = (model.context_length - 1) // min_image_tokens
            each = f"{min_image_tokens} tokens{OR_MORE if model.vision.grids else ''} each"
            shares.append(f"{len(images)} images take {each}, so at most {greatest} images fit.")
        if videos:
            shares.append(f"{len(videos)} videos take {_min_video_tokens(model)} tokens{OR_MORE} each.")
        raise context_length_exceeded(
            model.context_length, f"your {name} resulted in {min_tokens} tokens{or_more}", name, " ".join(shares), param=request.param
        )


def _check_videos(videos: Sequence[VideoUrl], model: ModelInfo) -> None:
    """Raise InvalidRequest if the model takes no videos, or not so many."""
    if model.video is None:
        param = videos[0].param
        raise InvalidRequest(f"{param}: this model takes no videos; {TAKE_VIDEOS} take them.", param=param)
    most = model.video.max_videos
    if most is not None and len(videos) > most:
        param = videos[most].param
        raise InvalidRequest(f"{param}: this model takes at most {most} video{'s' * (most > 1)} in one request.", param=param)


def _min_video_tokens(model: ModelInfo) -> int:
    """Return the number of tokens of a video with one frame; 0 if the model takes no videos."""
    return model.video.tokens(1) if model.video else 0


def apply_media_tokens(prepared: PreparedRequest, media: PreparedMedia, default_max_tokens: int) -> PreparedRequest:
    """Count the tokens of loaded images and videos, if their number depends on sizes or lengths. Raises InvalidRequest."""
    if not prepared.model.vision.grids and not media.videos:
        return prepared
    text_tokens = len(prepared.token_ids) - len(media.images) - len(media.videos)
    tokens, max_tokens = _fit(prepared.request, prepared.model, text_tokens, media.image_tokens, media.video_tokens, default_max_tokens)
    return dataclasses.replace(prepared, tokens=tokens, sampling=dataclasses.replace(prepared.sampling, max_tokens=max_tokens))


def _prepare_calls(prepared: PreparedRequest, request: ChatRequest, template: str | None, settings: Settings) -> PreparedRequest:
    """Return a request whose answer may call tools, or must. Raises InvalidRequest."""
    prompts, sampling = prepared.served_model.prompts, prepared.sampling
    if request.must_call:
        sampling = hold_to_calls(request, sampling)
        return dataclasses.replace(prepared, sampling=sampling, call_format=FORMATS["list"])
    if not prompts.renders_tools(template):
        return dataclasses.replace(prepared, sampling=hold_to_text_or_calls(request, sampling), call_format=FORMATS["hermes"])
    if wanted := sampling.structured_output:
        raise InvalidRequest(f"{wanted.param} cannot be combined with tools here; leave one of them out.", param=wanted.param)
    parser = settings.tool_call_parser
    call_format = FORMATS[_parser_of(prompts.source(template)) if parser == "auto" else parser]
    if any(marker in prepared.model.tokenizer.control_tokens for marker in (call_format.begin, *call_format.between)):
        sampling = dataclasses.replace(sampling, skip_special_tokens=False)
    return dataclasses.replace(prepared, sampling=sampling, call_format=call_format)


def _parser_of(template: str) -> CallFormatName:
    """Return the name of the format in which a chat template shows earlier calls."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    return "llama3_json" if '"parameters": ' in template and "<tool_call>" not in template else "hermes"


def _with_tool_tokens(
    error: ContextLengthExceeded, request: Request, prompt: RenderedPrompt, prompts: PromptRenderer, template: str | None
) -> ContextLengthExceeded:
    """Return the error with the number of tokens that the definitions of tools take."""
    if not isinstance(request, ChatRequest) or not request.tools:
        return error
    text = prompts.render(dataclasses.replace(request, tools=()), template)
    tokens = len(prompt.token_ids) - len(text.token_ids)
    return ContextLengthExceeded(f"{error.message} The {len(request.tools)} tools take {tokens} tokens of the text.", param=error.param)


def _fit(
    request: Request,
    model: ModelInfo,
    text_tokens: int,
    image_tokens: Sequence[int],
    video_tokens: Sequence[int],
    default_max_tokens: int,
    or_more: str = "",
) -> tuple[int, int]:
    """Return the prompt's length and the answer's greatest length, both in tokens. Raises InvalidRequest.

    `or_more`: OR_MORE if `image_tokens` or `video_tokens` are lower bounds.
    """
    asked = request.sampling
    tokens = text_tokens + sum(image_tokens) + sum(video_tokens)
    room = model.context_length - tokens
    wanted = asked.max_tokens or max(asked.min_tokens, 1)
    if asked.lower_max_tokens_to_fit:
        wanted = min(wanted, max(asked.min_tokens, 1))
    if wanted > room:
        name = _prompt_name(request)
        images = f"{sum(image_tokens)} of images ({_terms(image_tokens, model.vision.min_image_tokens)})"
        videos = f", {sum(video_tokens)} of videos ({_terms(video_tokens, 0)})" if video_tokens else ""
        raise context_length_exceeded(
            model.context_length,
            f"you requested {tokens + wanted} tokens{or_more} ({tokens} in the {name}, {wanted} in the completion)",
            f"{name} or completion",
            f"The sum: {text_tokens} tokens of text, {images}{videos} and {wanted} of answer.",
            param=request.param,
        )
    default = int(model.default_sampling.get("max_tokens", default_max_tokens))
    max_tokens = min(
        room, max(default, asked.min_tokens) if asked.max_tokens is None else asked.max_tokens, model.max_answer_tokens or room
    )
    most = MAX_CONTEXTS * model.context_length // asked.n
    if max_tokens > most and asked.max_tokens is not None:
        raise InvalidRequest(
            f"{asked.n} choices of {max_tokens} tokens are more than one request may ask for; "
            f"set max_tokens to {most} or less, or ask for fewer choices.",
            param="n",
        )
    max_tokens = min(max_tokens, most)
    if asked.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {asked.min_tokens}, more than max_tokens, {max_tokens}.", param="min_tokens")
    return tokens, max_tokens


def _terms(tokens: Sequence[int], otherwise: int) -> str:
    """Return the terms of a sum, such as "2 x 576" or "1176 + 2340". `otherwise`: the tokens of one, if there are none."""
    different = set(tokens) or {otherwise}
    return f"{len(tokens)} x {different.pop()}" if len(different) == 1 else " + ".join(map(str, tokens))


def _prompt_name(request: Request) -> str:
    """Return the name of a request's prompt in the error for a prompt that is too long."""
    return "messages" if isinstance(request, ChatRequest) else "prompt"


def _check_tokens(asked: SamplingParams, tokenizer: Tokenizer) -> None:
    tokenizer.check(asked.allowed_token_ids or (), "allowed_token_ids")
    tokenizer.check(asked.stop_token_ids, "stop_token_ids")
    for token_id in asked.logit_bias:
        if token_id >= tokenizer.size:
            raise tokenizer.refusal(token_id, f"logit_bias.{token_id}")
