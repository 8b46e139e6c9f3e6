"""The model's own sampling parameters: they apply where a client sets none, and nowhere else."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.silent_engine import SilentEngine

from llava_gateway.api.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.errors import ContextLengthExceeded, InvalidRequest
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.serving.prepare import prepare
from llava_gateway.settings import Settings
from llava_gateway.types import MODEL_DEFAULTS, ChatRequest, CompletionRequest, SamplingParams

INFO = asyncio.run(SilentEngine().start())
MODEL = dataclasses.replace(
    INFO, default_sampling={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 7}
)


def prepared(model: ModelInfo = MODEL, request: ChatRequest | CompletionRequest | None = None, **fields: Any) -> SamplingParams:
    """Return the parameters that the engine gets for a chat with these fields of OpenAI's API."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]} | fields
    request = request or to_chat(ChatCompletionRequest.parse(body))
    served: Any = SimpleNamespace(prompts=PromptRenderer(model, None))
    return prepare(request, served, model, None, Settings(model="m", default_max_tokens=1024)).sampling


def test_model_decides_what_the_client_leaves_out() -> None:
    sampling = prepared(top_k=5, min_p=None)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.8, 5, 0.0)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 7)


@pytest.mark.parametrize("name", MODEL_DEFAULTS)
def test_value_that_a_client_sends_is_kept_even_if_it_is_the_apis_default(name: str) -> None:
    default = getattr(SamplingParams(), name)
    sampling = prepared(dataclasses.replace(MODEL, default_sampling={name: default + 0.5}), **{name: default})
    assert getattr(sampling, name) == default


def test_greedy_model_generates_one_of_equal_choices() -> None:
    greedy = dataclasses.replace(MODEL, default_sampling={"temperature": 0.0})
    assert prepared(greedy, n=3).n == 1
    assert prepared(greedy, n=3, temperature=1).n == 3


def test_model_without_defaults_leaves_the_apis() -> None:
    assert prepared(INFO) == SamplingParams(max_tokens=1024, lower_max_tokens_to_fit=True, unset=frozenset(MODEL_DEFAULTS))


def test_other_apis_keep_their_own_defaults() -> None:
    request = CompletionRequest(model="m", prompt="Hello", sampling=SamplingParams(temperature=1.0))
    assert (prepared(request=request).temperature, prepared(request=request).top_k) == (1.0, 0)


@pytest.mark.parametrize(("asked", "expected"), [(None, 5), (3, 3), (100, 5)])
def test_answers_are_never_longer_than_the_operator_allows(asked: int | None, expected: int) -> None:
    bounded = dataclasses.replace(MODEL, max_answer_tokens=5)
    assert prepared(bounded, max_tokens=asked).max_tokens == expected


def test_image_beyond_the_operators_limit_is_refused_with_the_number() -> None:
    """Before a fetch, since the images cannot be fetched."""
    bounded = dataclasses.replace(MODEL, max_images=4)
    image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/image.png"}}
    prepared(bounded, messages=[{"role": "user", "content": [image] * 4}])
    with pytest.raises(InvalidRequest, match=r"has 5 images, .* at most 4 .*--limit-mm-per-prompt") as raised:
        prepared(bounded, messages=[{"role": "user", "content": [image] * 5}])
    assert raised.value.param == "messages"
    with pytest.raises(ContextLengthExceeded, match="at most 2 images fit"):  # raising the operator's limit would not help
        prepared(dataclasses.replace(bounded, context_length=3), messages=[{"role": "user", "content": [image] * 5}])
