"""Requests and outputs of vLLM's front end, without an engine. Importing this file imports vLLM."""

from functools import cache
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from llava_gateway.demo import CHECKPOINT
from llava_gateway.tokenizer import Tokenizer

FINISHED = FinishReason.LENGTH


@cache
def tokenizer() -> Any:
    """Return the demo model's tokenizer as vLLM loads it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


@cache
def texts() -> list[str | None]:
    """Return the demo model's texts of tokens."""
    return Tokenizer(tokenizer().backend_tokenizer.to_str()).token_texts()


def params(**given: Any) -> SamplingParams:
    """Return the parameters of a plain stream."""
    return SamplingParams(max_tokens=99, output_kind=RequestOutputKind.DELTA, **given)


def add_request(processor: OutputProcessor, name: str, received: list[Any], sampling: SamplingParams) -> None:
    """Add a request whose outputs are appended to `received`."""
    request = EngineCoreRequest(name, [1, 300, 301], None, sampling, None, 0.0, None, None, None, external_req_id=name)
    collector = RequestOutputCollector(RequestOutputKind.DELTA, name)
    collector.put = received.append
    processor.add_request(request, None, None, 0, collector)
