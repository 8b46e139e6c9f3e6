"""From vLLM's outputs and refusals to the gateway's."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from llava_gateway.errors import EngineFailed, GatewayError, InvalidRequest, Unavailable
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import Delta, FinishReason, SamplingParams, StructuredOutput, TokenLogprob, Usage

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestState


FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "length"}
"""vLLM cuts an answer short that goes round in circles, if its operator wants that: to the client it is an answer that is not whole."""
LEAST_LOGPROB = -9999.0
"""OpenAI's way to say "never" without an infinity, which JSON does not have."""


def token_logprobs(choice: "CompletionOutput", sampling: SamplingParams, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """The choice's log probabilities. For each place vLLM has the token drawn, then the likeliest, likeliest first. The token that ended
    the text (not a stop string) is no part of it, unless the client wants it there."""
    flat = cast("FlatLogprobs | None", choice.logprobs)  # as `sampling_params` asks for them
    if not flat:
        return ()
    places = list(zip(flat.start_indices, flat.end_indices, strict=True))
    if choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str) and not sampling.include_stop_str_in_output:
        del places[-1:]
    entries = [
        (tokenizer.token_bytes(token), max(logprob, LEAST_LOGPROB)) for token, logprob in zip(flat.token_ids, flat.logprobs, strict=True)
    ]
    return tuple(
        TokenLogprob(token, logprob, tuple(entries[start + 1 : end])) for start, end in places for token, logprob in [entries[start]]
    )


def finish_reason(reason: str | None, structured_output: StructuredOutput | None) -> FinishReason | None:
    """How a choice ended, in the words of the contract. Raises what the client is told when the engine gave up on it."""
    if reason is None:
        return None
    if reason == "abort":
        raise Unavailable("The engine dropped this request, most likely because it is stopping.", code="engine_abort", retry_after=1)
    if reason == "error" and structured_output is not None:
        raise InvalidRequest(
            "The engine cannot hold the answer to this form: it is too complicated, or other fields forbid the tokens that it needs.",
            param=structured_output.param,
        )
    if reason not in FINISH:
        raise EngineFailed("The engine failed on this request.", code="engine_error", retry_after=1)
    return FINISH[reason]


def refusal(error: Exception, structured_output: StructuredOutput | None) -> GatewayError:
    """vLLM's refusal in the client's terms."""
    reason = str(error.args[0])[:300] if error.args else "no reason given"
    param = getattr(error, "parameter", None)
    if param is None and structured_output is not None:
        param = structured_output.param
    return InvalidRequest(f"The engine refuses this request: {reason}", param=param)


class OutputSink:
    """Gives the deltas of one request to `take`, and counts its tokens."""

    def __init__(
        self, sampling: SamplingParams, tokenizer: Tokenizer, usage: Usage, on_delta: Callable[[Delta], None], *, stream: bool, images: bool
    ) -> None:
        self.usage = usage
        self.stream = stream
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._on_delta = on_delta
        self._may_lack_images = images
        self._end: asyncio.Future[bool]

    def begin(self) -> asyncio.Future[bool]:
        """Of what is put from now on; the end of it is whether the answer is whole: if not, the engine lacks an image."""
        self._end = asyncio.get_running_loop().create_future()
        return self._end

    def put(self, output: "RequestOutput | Exception") -> None:
        """vLLM's next output. Raises nothing: it would be the end of vLLM's loop, and so of all requests."""
        if self._end.done():
            return
        try:
            if isinstance(output, Exception):
                raise output
            self._deliver(output)
        except StopIteration as error:  # which a future does not take
            self._end.set_exception(RuntimeError(repr(error)))
        except Exception as error:
            self._end.set_exception(error)

    def _deliver(self, output: "RequestOutput") -> None:
        if self._may_lack_images:
            self._may_lack_images = False
            if any(choice.finish_reason == "error" for choice in output.outputs):
                self._end.set_result(False)
                return
        sampling, usage = self._sampling, self.usage
        usage.cached_tokens = output.num_cached_tokens or 0
        for choice in output.outputs:
            tokens = len(choice.token_ids)
            usage.completion_tokens += tokens
            reason = finish_reason(choice.finish_reason, sampling.structured_output)
            logprobs = () if sampling.logprobs is None else token_logprobs(choice, sampling, self._tokenizer)
            self._on_delta(Delta(choice.index, choice.text, tokens, reason, choice.stop_reason, logprobs))
        if output.finished:
            self._end.set_result(True)


def states_of(engine: "AsyncLLM", name: str) -> "list[RequestState]":
    """What vLLM's front end knows of the request of this name: one for each of its choices that goes on."""
    processor = engine.output_processor
    return [processor.request_states[each] for each in processor.external_req_ids.get(name, ()) if each in processor.request_states]


def generated_tokens(engine: "AsyncLLM", name: str) -> int:
    """Tokens that the request of this name has come to by now; vLLM tells the length of an answer that is wanted whole only with it. Of all
    its choices: of those that go on, and of those that have ended and wait for the others."""
    states = states_of(engine, name)
    tokens: int = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
    parents = {id(state.parent_req): state.parent_req for state in states if state.parent_req}
    return tokens + sum(len(choice.token_ids) for parent in parents.values() for choice in parent.output_aggregator if choice)
