"""vLLM's outputs and refusals, translated to the gateway's deltas and errors."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from llava_gateway.errors import EngineFailed, GatewayError, InvalidRequest, Unavailable
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import (
    MIN_LOGPROB,
    Delta,
    FinishReason,
    PromptLogprobs,
    SamplingParams,
    StructuredOutput,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput
    from vllm.logprobs import FlatLogprobs


FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "length"}
"""vLLM's finish reasons and the gateway's. "repetition": the operator has vLLM cut answers that repeat themselves. Such an answer is not
complete, so the client gets "length"."""


def token_logprobs(choice: "CompletionOutput", sampling: SamplingParams, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """Return the log probabilities of a choice's new tokens.

    vLLM lists, for each position of the answer, the token that was drawn, and then the most probable tokens in descending order. The token
    that ended the answer is left out unless the client wants it. A stop string consists of ordinary tokens, which stay.
    """
    flat = cast("FlatLogprobs | None", choice.logprobs)  # `sampling_params` asks for this class
    if not flat:
        return ()
    positions = list(zip(flat.start_indices, flat.end_indices, strict=True))
    stop_token = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
    if stop_token and not (sampling.include_stop_str_in_output or sampling.include_stop_token):
        del positions[-1:]
    entries = [
        (tokenizer.token_bytes(token), max(logprob, MIN_LOGPROB)) for token, logprob in zip(flat.token_ids, flat.logprobs, strict=True)
    ]
    ids = flat.token_ids
    return tuple(
        TokenLogprob(token, logprob, tuple(entries[start + 1 : end]), ids[start], tuple(ids[start + 1 : end]))
        for start, end in positions
        for token, logprob in [entries[start]]
    )


def prompt_logprobs(output: "RequestOutput") -> PromptLogprobs | None:
    """Return the log probabilities of the prompt's tokens. None: this output has none; vLLM's first output of each choice has them."""
    flat = cast("FlatLogprobs | None", output.prompt_logprobs)  # `sampling_params` asks for this class
    if not flat:
        return None
    return PromptLogprobs(flat.start_indices, flat.end_indices, flat.token_ids, flat.logprobs, cast("list[int]", flat.ranks))


def finish_reason(reason: str | None, structured_output: StructuredOutput | None) -> FinishReason | None:
    """Return the gateway's finish reason for vLLM's. None: the choice goes on.

    Raises Unavailable, InvalidRequest or EngineFailed if the engine has given up on the choice.
    """
    if reason is None:
        return None
    if reason == "abort":
        raise Unavailable("The engine dropped this request, most likely because it is stopping.", code="engine_abort", retry_after=1)
    if reason == "error" and structured_output is not None:
        raise InvalidRequest(
            "The engine cannot hold the answer to this format: it is too complicated, or other fields forbid the tokens that it needs.",
            param=structured_output.param,
        )
    if reason not in FINISH_REASONS:
        raise EngineFailed("The engine failed on this request.", code="engine_error", retry_after=1)
    return FINISH_REASONS[reason]


def refusal(error: Exception, structured_output: StructuredOutput | None) -> GatewayError:
    """Return the client's error for a request that vLLM has refused."""
    reason = str(error.args[0])[:300] if error.args else "no reason given"
    param = getattr(error, "parameter", None)
    if param is None and structured_output is not None:
        param = structured_output.param
    return InvalidRequest(f"The engine refuses this request: {reason}", param=param)


class OutputSink:
    """Receives the outputs of one request from vLLM's output loop, passes them on as deltas, and counts their tokens."""

    def __init__(
        self,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
        *,
        stream: bool,
        images: bool,
    ) -> None:
        """`usage`: the tokens of the answer are added to it. `on_delta`, `on_text`: as in `Engine.generate`.

        `images`: whether the prompt has images or videos.
        """
        self.usage = usage
        self.stream = stream
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._on_delta = on_delta
        self._on_text = on_text
        self._may_lack_images = images
        self._wants_prompt = sampling.prompt_logprobs is not None
        self._has_details = sampling.return_token_ids or sampling.max_tokens == 0
        self._end: asyncio.Future[bool]

    def begin(self) -> asyncio.Future[bool]:
        """Start a new attempt at the request, and return a future of its end.

        The future's result is True if the answer is whole, and False if the engine lacks an image and the request has to be sent again.
        """
        self._end = asyncio.get_running_loop().create_future()
        return self._end

    def put(self, output: "RequestOutput | Exception") -> None:
        """Accept vLLM's next output, or its error.

        Raises nothing, because an error would end vLLM's output loop and all requests with it. The future of `begin` gets the error.
        """
        if self._end.done():
            return
        try:
            if isinstance(output, Exception):
                raise output
            self._deliver(output)
        except Exception as error:
            self._fail(error)

    @property
    def takes_text(self) -> bool:
        """Whether `put_text` may be called: the answer is a stream of one choice that has nothing but text."""
        sampling = self._sampling
        plain = sampling.n == 1 and sampling.logprobs is None and not (self._wants_prompt or self._has_details)
        return self.stream and plain and self._on_text is not None

    def put_text(self, text: str, tokens: int) -> None:
        """Accept an output of vLLM that has nothing but text and neither begins nor ends the answer. Raises nothing, like `put`."""
        self.usage.completion_tokens += tokens
        if self._end.done():
            return
        assert self._on_text
        try:
            self._on_text(text, tokens)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        # A future refuses errors of the class StopIteration.
        self._end.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)

    def _deliver(self, output: "RequestOutput") -> None:
        if self._may_lack_images:
            self._may_lack_images = False
            if any(choice.finish_reason == "error" for choice in output.outputs):
                self._end.set_result(False)
                return
        sampling, usage = self._sampling, self.usage
        usage.cached_tokens = output.num_cached_tokens or 0
        if self._wants_prompt and (logprobs_of_prompt := prompt_logprobs(output)):
            self._wants_prompt = False  # the other choices have the same
            self._on_delta(Delta(output.outputs[0].index, "", 0, prompt_logprobs=logprobs_of_prompt))
        for choice in output.outputs:
            tokens = len(choice.token_ids)
            usage.completion_tokens += tokens
            reason = finish_reason(choice.finish_reason, sampling.structured_output)
            logprobs = () if sampling.logprobs is None else token_logprobs(choice, sampling, self._tokenizer)
            delta = Delta(choice.index, choice.text, tokens, reason, choice.stop_reason, logprobs)
            self._on_delta(self._with_details(delta, choice.token_ids) if self._has_details else delta)
        if output.finished:
            self._end.set_result(True)

    def _with_details(self, delta: Delta, token_ids: Sequence[int]) -> Delta:
        """Return the delta with its token ids. If the answer has to be empty, return the end that an empty answer has."""
        if self._sampling.max_tokens == 0:
            self.usage.completion_tokens -= delta.tokens  # the engine cannot generate less than one token
            return Delta(delta.index, "", 0, delta.finish_reason and "length")
        return dataclasses.replace(delta, token_ids=tuple(token_ids))
