"""vLLM's outputs become deltas: each finish reason, the log probabilities of prompts, token ids, and empty answers."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llava_gateway.engine.vllm.outputs import OutputSink, finish_reason
from llava_gateway.engine.vllm.sampling import sampling_params
from llava_gateway.errors import EngineFailed, InvalidRequest, Unavailable
from llava_gateway.types import Delta, SamplingParams, StructuredOutput, Usage

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_each_finish_reason_of_vllm_is_translated() -> None:
    from vllm.v1.engine import FINISH_REASON_STRINGS

    form = StructuredOutput("regex", "a")
    assert finish_reason(None, None) is None
    assert finish_reason("stop", form) == "stop"
    assert finish_reason("length", None) == "length"
    assert finish_reason("repetition", None) == "length"  # such an answer is not complete
    with pytest.raises(Unavailable, match="dropped") as dropped:
        finish_reason("abort", None)
    assert (dropped.value.status, dropped.value.code, dropped.value.retry_after) == (503, "engine_abort", 1)
    with pytest.raises(EngineFailed) as failed:
        finish_reason("error", None)
    assert (failed.value.status, failed.value.code, failed.value.retry_after) == (500, "engine_error", 1)
    with pytest.raises(InvalidRequest) as refused:
        finish_reason("error", form)
    assert refused.value.param == form.param
    assert set(FINISH_REASON_STRINGS) == {"stop", "length", "abort", "error", "repetition"}  # a new reason needs a translation


def outputs_of(sampling: SamplingParams, *outputs: Any) -> tuple[list[Delta], Usage]:
    """Return the deltas and the usage that vLLM's outputs become."""

    async def run() -> tuple[list[Delta], Usage]:
        deltas, usage = list[Delta](), Usage()
        tokenizer: Any = SimpleNamespace(token_bytes=lambda token: b"%d" % token)
        sink = OutputSink(sampling, tokenizer, usage, deltas.append, stream=True, images=False)
        end = sink.begin()
        for output in outputs:
            sink.put(output)
        assert await end
        return deltas, usage

    return asyncio.run(run())


def output(token_ids: list[int], *, index: int = 0, finished: bool = False, prompt_logprobs: Any = None) -> Any:
    choice = SimpleNamespace(
        index=index, text="x", token_ids=token_ids, finish_reason="stop" if finished else None, stop_reason=None, logprobs=None
    )
    return SimpleNamespace(outputs=[choice], finished=finished, num_cached_tokens=0, prompt_logprobs=prompt_logprobs)


def test_prompt_logprobs_come_once_before_the_first_delta() -> None:
    """vLLM computes them again for each choice."""
    from vllm.logprobs import append_logprobs_for_next_position, create_prompt_logprobs

    container = create_prompt_logprobs(flat_logprobs=True)
    append_logprobs_for_next_position(container, [7, 1, 2], [-3.0, -1.0, float("-inf")], [None] * 3, 3, 2)
    sampling = SamplingParams(n=2, max_tokens=9, prompt_logprobs=2)
    deltas, _ = outputs_of(
        sampling, output([5], prompt_logprobs=container), output([6], index=1, prompt_logprobs=container), output([8], finished=True)
    )
    first, *others = deltas
    assert first.prompt_logprobs
    assert (first.text, first.tokens, len(first.prompt_logprobs)) == ("", 0, 2)
    assert first.prompt_logprobs.entries(0, 2) == []
    assert first.prompt_logprobs.entries(1, 2) == [(7, -3.0, 3), (1, -1.0, 1), (2, -9999.0, 2)]
    assert first.prompt_logprobs.entries(1, 0) == [(7, -3.0, 3)]
    assert [delta.prompt_logprobs for delta in others] == [None] * 3


def test_empty_answer_has_no_token_although_the_engine_generates_one() -> None:
    deltas, usage = outputs_of(SamplingParams(max_tokens=0, logprobs=1), output([5], finished=True))
    assert deltas == [Delta(0, "", 0, "length")]
    assert usage.completion_tokens == 0
    assert sampling_params(SamplingParams(max_tokens=0), stream=False, seeds_work=True).max_tokens == 1


def test_token_ids_are_in_the_deltas_only_if_asked() -> None:
    tokens = output([5, 6]), output([7], finished=True)
    deltas, usage = outputs_of(SamplingParams(max_tokens=9, return_token_ids=True), *tokens)
    assert [delta.token_ids for delta in deltas] == [(5, 6), (7,)]
    assert usage.completion_tokens == 3
    assert [delta.token_ids for delta in outputs_of(SamplingParams(max_tokens=9), *tokens)[0]] == [(), ()]
