"""From a request to what the engine gets: whether it fits the model's context, and how long its answer may be."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from llava_gateway.errors import ContextLengthExceeded, InvalidRequest
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.tokenizer import Vocabulary
from llava_gateway.types import ModelInfo, PreparedImage, Request, Sampling


@dataclass(frozen=True, slots=True)
class Plan:
    request: Request
    model: ModelInfo
    prompt: str
    """The prompt's text; empty where the client sent token ids."""
    token_ids: list[int]
    """One for each image."""
    tokens: int
    """Its length with the images expanded. Where that depends on the images' sizes, the least that it can be, until `settle`."""
    sampling: Sampling
    """An answer that fits the context beside it."""
    reserved: int = 0
    """Tokens of the key's limit that are reserved for it."""

    @property
    def most_tokens(self) -> int:
        """Of the prompt and of all choices, each as long as it may be. Greedy choices are drawn once, and count as often as asked for."""
        return self.tokens + (self.sampling.max_tokens or 0) * self.request.sampling.n


def make_plan(request: Request, model: ModelInfo, prompts: PromptRenderer, template: str | None, default_max_tokens: int) -> Plan:
    """`template`: the name of a built-in one for a chat. Raises InvalidRequest."""
    asked, images, vision = request.sampling, len(request.images), model.vision
    if vision.grids and request.image_aspect_ratio:
        raise InvalidRequest("This model sees pictures in their own shape and makes none square.", param="image_aspect_ratio")
    check_images(request, model)
    prompt = prompts.render(request, template)
    _check_tokens(asked, model.vocabulary)
    text_tokens, least = len(prompt.token_ids) - images, "at least " if images and vision.grids else ""
    tokens, max_tokens = _fit(request, model, text_tokens, [vision.fewest] * images, default_max_tokens, least)
    stop = asked.stop + tuple(each for each in prompt.stop if each not in asked.stop)
    sampling = dataclasses.replace(asked, max_tokens=max_tokens, n=1 if asked.temperature == 0 else asked.n, stop=stop)
    return Plan(request, model, prompt.text, prompt.token_ids, tokens, sampling)


def check_images(request: Request, model: ModelInfo) -> None:
    """Whether its images may fit the context, before anything is made of them. Raises ContextLengthExceeded."""
    images, fewest = len(request.images), model.vision.fewest
    if images * fewest >= model.context_length:
        least = "at least " if model.vision.grids else ""
        raise ContextLengthExceeded(
            f"{images} images take {least}{images * fewest} tokens; the model's context is {model.context_length}, "
            f"so at most {(model.context_length - 1) // fewest} images fit.",
            param=request.param,
        )


def settle(plan: Plan, images: Sequence[PreparedImage], default_max_tokens: int) -> Plan:
    """The plan with the tokens of its images as they turned out to be. Raises InvalidRequest."""
    if not plan.model.vision.grids:
        return plan
    text_tokens = len(plan.token_ids) - len(images)
    tokens, max_tokens = _fit(plan.request, plan.model, text_tokens, [image.tokens for image in images], default_max_tokens)
    return dataclasses.replace(plan, tokens=tokens, sampling=dataclasses.replace(plan.sampling, max_tokens=max_tokens))


def _fit(
    request: Request, model: ModelInfo, text_tokens: int, image_tokens: Sequence[int], default_max_tokens: int, least: str = ""
) -> tuple[int, int]:
    """Tokens of the prompt, and of the longest answer that is wanted and fits beside it."""
    asked, images, expanded = request.sampling, len(image_tokens), sum(image_tokens)
    tokens = text_tokens + expanded
    room = model.context_length - tokens
    wanted = asked.max_tokens or max(asked.min_tokens, 1)
    if wanted > room:
        different = set(image_tokens) or {model.vision.fewest}
        each = f"{images} x {different.pop()}" if len(different) == 1 else " + ".join(map(str, image_tokens))
        raise ContextLengthExceeded(
            f"The model's context is {model.context_length} tokens, and this request asks for {least}{tokens + wanted}: "
            f"{text_tokens} of text, {expanded} of images ({each}) and {wanted} of answer.",
            param=request.param,
        )
    max_tokens = asked.max_tokens or min(room, max(default_max_tokens, asked.min_tokens))
    if asked.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {asked.min_tokens}, more than max_tokens, {max_tokens}.", param="min_tokens")
    return tokens, max_tokens


def _check_tokens(asked: Sampling, vocabulary: Vocabulary) -> None:
    vocabulary.check(asked.allowed_token_ids or (), "allowed_token_ids")
    vocabulary.check(asked.stop_token_ids, "stop_token_ids")
    for token_id in asked.logit_bias:
        if token_id >= vocabulary.size:
            raise vocabulary.refusal(token_id, f"logit_bias.{token_id}")
