"""What is adapted in vLLM's own code. Each part names the private names of vLLM that it touches and the version in which they were read; a
test in tests/test_compat.py reads vLLM's source again, and says what has changed; and there is a way without them.

Seeds on a CPU
    vLLM draws a token for every row of a batch, for a prompt that has been read in part as well, and throws that token away. So that the
    draw does not count, it rewinds the row's random generator by `set_offset`, which only CUDA's generators have: on a CPU the call ends
    the engine. It happens whenever a seeded prompt is read in several steps, and when a request continues after preemption.
    `without_discarded_rows` takes the generators of such rows out of the batch for that draw, so nothing has to be rewound.
    Touches: `input_batch.generators`, `input_batch.num_reqs` and `discard_request_mask` of the model runner.
    Without it: `seeds_work` is False, and a request that is sampled with a seed is refused.

Spelling of log probabilities
    vLLM decodes the token of every log probability on the event loop, one by one: twenty for each of a hundred answers take 50 ms in every
    step. Nobody reads that, since the gateway spells tokens itself. `without_spelling` takes the tokenizer from where log probabilities are
    made, which then leave the spelling out.
    Touches: `output_processor.request_states`, `output_processor.external_req_ids` and the states' `logprobs_processor.tokenizer`.
    Without it: the same answers, and a slower event loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava_gateway.engine.vllm.outputs import states_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

READ_IN = "0.32."
"""Start of the versions of vLLM that this file was written for."""
CPU_WORKER = "llava_gateway.engine.vllm.engine.cpu_worker.CpuWorker"


def choose_cpu_worker(arguments: "AsyncEngineArgs") -> None:
    """Use our worker, unless the operator has named another or vLLM is one that nobody has read."""
    import vllm

    if arguments.worker_cls == "auto" and vllm.__version__.startswith(READ_IN):
        arguments.worker_cls = CPU_WORKER


def seeds_work(config: "VllmConfig") -> bool:
    """Whether the engine survives a seeded prompt that it reads in several steps."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu() or config.use_v2_model_runner or config.parallel_config.worker_cls == CPU_WORKER


def without_spelling(engine: "AsyncLLM", name: str) -> None:
    """The request of this name, just added, gets log probabilities of token ids alone."""
    for state in states_of(engine, name):
        if state.logprobs_processor:
            state.logprobs_processor.tokenizer = None


@contextmanager
def without_discarded_rows(model_runner: Any) -> Iterator[None]:
    """Within, the batch holds no generator of a row whose token will be thrown away."""
    batch, discarded = model_runner.input_batch, model_runner.discard_request_mask.np
    kept = {row: batch.generators.pop(row) for row in list(batch.generators) if row < batch.num_reqs and discarded[row]}
    try:
        yield
    finally:
        batch.generators.update(kept)
