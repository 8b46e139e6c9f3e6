"""From a request to what the engine gets: whether it fits the model's context, and how long its answer may be."""

import dataclasses
from dataclasses import dataclass

from llava_gateway.chat import Request, Sampling
from llava_gateway.engine import ModelInfo
from llava_gateway.errors import ContextLengthExceeded, InvalidRequest
from llava_gateway.prompt import PromptRenderer
from llava_gateway.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Plan:
    request: Request
    prompt: str
    """The prompt's text; empty where the client sent token ids."""
    token_ids: list[int]
    """One for each image."""
    tokens: int
    """Its length with the images expanded."""
    sampling: Sampling
    """An answer that fits the context beside it."""


def make_plan(request: Request, model: ModelInfo, prompts: PromptRenderer, template: str | None, default_max_tokens: int) -> Plan:
    """`template`: the name of a built-in one for a chat. Raises InvalidRequest."""
    asked, images = request.sampling, len(request.images)
    if images * model.image_tokens >= model.context_length:
        raise ContextLengthExceeded(
            f"{images} images take {images * model.image_tokens} tokens; the model's context is {model.context_length}, "
            f"so at most {(model.context_length - 1) // model.image_tokens} images fit.",
            param=request.param,
        )
    prompt = prompts.render(request, template)
    image_tokens, text_tokens = images * model.image_tokens, len(prompt.token_ids) - images
    tokens = text_tokens + image_tokens
    room = model.context_length - tokens
    wanted = asked.max_tokens or max(asked.min_tokens, 1)
    if wanted > room:
        raise ContextLengthExceeded(
            f"The model's context is {model.context_length} tokens, and this request asks for {tokens + wanted}: "
            f"{text_tokens} of text, {image_tokens} of images ({images} x {model.image_tokens}) and {wanted} of answer.",
            param=request.param,
        )
    max_tokens = asked.max_tokens or min(room, max(default_max_tokens, asked.min_tokens))
    if asked.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {asked.min_tokens}, more than max_tokens, {max_tokens}.", param="min_tokens")
    _check_tokens(asked, model.vocabulary)
    stop = asked.stop + tuple(each for each in prompt.stop if each not in asked.stop)
    sampling = dataclasses.replace(asked, max_tokens=max_tokens, n=1 if asked.temperature == 0 else asked.n, stop=stop)
    return Plan(request, prompt.text, prompt.token_ids, tokens, sampling)


def _check_tokens(asked: Sampling, vocabulary: Vocabulary) -> None:
    vocabulary.check(asked.allowed_token_ids or (), "allowed_token_ids")
    vocabulary.check(asked.stop_token_ids, "stop_token_ids")
    for token_id in asked.logit_bias:
        if token_id >= vocabulary.size:
            raise vocabulary.refusal(token_id, f"logit_bias.{token_id}")
