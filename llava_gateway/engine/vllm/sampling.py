"""The gateway's sampling parameters, translated to vLLM's."""

import dataclasses
from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import SamplingParams, StructuredOutput

MAX_CHECKED = 256
"""The upper bound of parameters in `CheckedParams`."""
MAX_STOP = 200
"""The upper bound of the stop strings of such parameters together, in characters."""
LARGE = ("logit_bias", "structured_output", "allowed_token_ids", "bad_words", "stop_token_ids", "logprob_token_ids")
MAY_BE_LARGE = attrgetter(*LARGE)
FIELDS = attrgetter(*(field.name for field in dataclasses.fields(SamplingParams) if field.name not in LARGE))

if TYPE_CHECKING:
    import vllm
    from vllm.sampling_params import StructuredOutputsParams

SEEDS = 1 << 62
"""Seeds are taken modulo this number. vLLM adds the index of a choice to its seed, in 64 bits, and takes -1 for no seed."""


def sampling_params(sampling: SamplingParams, stream: bool, *, seeds_work: bool) -> "vllm.SamplingParams":
    """Return vLLM's sampling parameters.

    A field of a wrong type would make the engine hang for good. So the parameters are encoded and decoded here as the engine does it, where
    a mistake ends only this request. `seeds_work`: see `compat.seeds`. Raises InvalidRequest.
    """
    import msgspec
    import vllm
    from vllm.sampling_params import RequestOutputKind

    if sampling.seed is not None and sampling.temperature > 0 and not seeds_work:
        raise InvalidRequest("This server's engine cannot repeat an answer by its seed; leave out `seed`.", param="seed")
    params = vllm.SamplingParams(
        n=sampling.n,
        max_tokens=None if sampling.max_tokens is None else max(sampling.max_tokens, 1),  # `OutputSink` drops the token
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=None if sampling.seed is None else sampling.seed % SEEDS,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=min(max(sampling.repetition_penalty, 0.01), 100.0),  # beyond these, logits become infinite
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=list(sampling.allowed_token_ids) if sampling.allowed_token_ids is not None else None,
        bad_words=list(sampling.bad_words),
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        ignore_eos=sampling.ignore_eos,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=sampling.spaces_between_special_tokens,
        structured_outputs=_structured_outputs(sampling.structured_output) if sampling.structured_output else None,
        logprobs=None if sampling.logprob_token_ids else sampling.logprobs,  # vLLM's bound of `logprobs` is lower than that of the ids
        logprob_token_ids=list(sampling.logprob_token_ids) or None,
        prompt_logprobs=sampling.prompt_logprobs,
        flat_logprobs=True,  # a few lists; one object for each log probability would keep the garbage collector busy for half a second
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # nothing else uses this object
    )
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=vllm.SamplingParams)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"A sampling parameter has the wrong type: {error}") from error


class CheckedParams:
    """vLLM's sampling parameters of the last requests, which vLLM has checked and completed, for equal requests after them."""

    def __init__(self) -> None:
        self._params: OrderedDict[tuple[object, ...], vllm.SamplingParams] = OrderedDict()

    def get(self, sampling: SamplingParams, stream: bool) -> "vllm.SamplingParams | None":
        """Return the parameters of an earlier request with equal `sampling`; None if there is none."""
        key = stream, *FIELDS(sampling)
        params = None if any(MAY_BE_LARGE(sampling)) else self._params.get(key)
        if params is not None:
            self._params.move_to_end(key)
        return params

    def add(self, sampling: SamplingParams, stream: bool, params: "vllm.SamplingParams") -> None:
        """Remember parameters that vLLM has accepted, unless they may be large, or vLLM has adapted them to the prompt."""
        if sampling.n > 1 or sampling.max_tokens is None or any(MAY_BE_LARGE(sampling)) or sum(map(len, sampling.stop)) > MAX_STOP:
            return
        self._params[stream, *FIELDS(sampling)] = params
        if len(self._params) > MAX_CHECKED:
            self._params.popitem(last=False)


def _structured_outputs(structured_output: StructuredOutput) -> "StructuredOutputsParams":
    from vllm.sampling_params import StructuredOutputsParams

    if structured_output.kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    spec = list(structured_output.spec) if structured_output.kind == "choice" else structured_output.spec
    return StructuredOutputsParams(**{structured_output.kind: spec})
