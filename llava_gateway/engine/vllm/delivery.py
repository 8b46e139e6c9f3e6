"""From vLLM's outputs to deltas, in vLLM's own loop. vLLM would have a task of ours woken for each token, which costs as much again."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from llava_gateway.chat import Delta, Sampling, Usage
from llava_gateway.engine.vllm.outputs import finish_reason, token_logprobs
from llava_gateway.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestState


class Delivery:
    """Gives the deltas of one request to `take`, and counts its tokens."""

    def __init__(
        self, sampling: Sampling, vocabulary: Vocabulary, usage: Usage, take: Callable[[Delta], None], *, stream: bool, images: bool
    ) -> None:
        self.usage = usage
        self.stream = stream
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._take = take
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
            reason = finish_reason(choice.finish_reason, sampling.structure)
            logprobs = () if sampling.logprobs is None else token_logprobs(choice, sampling, self._vocabulary)
            self._take(Delta(choice.index, choice.text, tokens, reason, choice.stop_reason, logprobs))
        if output.finished:
            self._end.set_result(True)


def states_of(engine: "AsyncLLM", name: str) -> "list[RequestState]":
    """What vLLM's front end knows of the request of this name: one for each of its choices that goes on."""
    processor = engine.output_processor
    return [processor.request_states[each] for each in processor.external_req_ids.get(name, ()) if each in processor.request_states]


def written(engine: "AsyncLLM", name: str) -> int:
    """Tokens that the request of this name has come to by now; vLLM tells the length of an answer that is wanted whole only with it. Of all
    its choices: of those that go on, and of those that have ended and wait for the others."""
    states = states_of(engine, name)
    tokens: int = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
    parents = {id(state.parent_req): state.parent_req for state in states if state.parent_req}
    return tokens + sum(len(choice.token_ids) for parent in parents.values() for choice in parent.output_aggregator if choice)
