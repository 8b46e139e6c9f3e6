"""From vLLM's outputs and refusals to the gateway's."""

from typing import TYPE_CHECKING, cast

from llava_gateway.chat import FinishReason, Sampling, Structure, TokenLogprob
from llava_gateway.errors import EngineFailed, GatewayError, InvalidRequest, Unavailable
from llava_gateway.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm import CompletionOutput
    from vllm.logprobs import FlatLogprobs

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "length"}
"""vLLM cuts an answer short that goes round in circles, if its operator wants that: to the client it is an answer that is not whole."""
LEAST_LOGPROB = -9999.0
"""OpenAI's way to say "never" without an infinity, which JSON does not have."""


def token_logprobs(choice: "CompletionOutput", sampling: Sampling, vocabulary: Vocabulary) -> tuple[TokenLogprob, ...]:
    """The choice's log probabilities. For each place vLLM has the token drawn, then the likeliest, likeliest first. The token that ended
    the text (not a stop string) is no part of it, unless the client wants it there."""
    flat = cast("FlatLogprobs | None", choice.logprobs)  # as `sampling_params` asks for them
    if not flat:
        return ()
    places = list(zip(flat.start_indices, flat.end_indices, strict=True))
    if choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str) and not sampling.include_stop_str_in_output:
        del places[-1:]
    entries = [
        (vocabulary.token_bytes(token), max(logprob, LEAST_LOGPROB)) for token, logprob in zip(flat.token_ids, flat.logprobs, strict=True)
    ]
    return tuple(
        TokenLogprob(token, logprob, tuple(entries[start + 1 : end])) for start, end in places for token, logprob in [entries[start]]
    )


def finish_reason(reason: str | None, structure: Structure | None) -> FinishReason | None:
    """How a choice ended, in the words of the contract. Raises what the client is told when the engine gave up on it."""
    if reason is None:
        return None
    if reason == "abort":
        raise Unavailable("The engine dropped this request, most likely because it is stopping.", code="engine_abort", retry_after=1)
    if reason == "error" and structure is not None:
        raise InvalidRequest(
            "The engine cannot hold the answer to this form: it is too complicated, or other fields forbid the tokens that it needs.",
            param=structure.param,
        )
    if reason not in FINISH:
        raise EngineFailed("The engine failed on this request.", code="engine_error", retry_after=1)
    return FINISH[reason]


def refusal(error: Exception, structure: Structure | None) -> GatewayError:
    """vLLM's refusal in the client's terms."""
    reason = str(error.args[0])[:300] if error.args else "no reason given"
    param = getattr(error, "parameter", None)
    if param is None and structure is not None:
        param = structure.param
    return InvalidRequest(f"The engine refuses this request: {reason}", param=param)
