"""Seeds on a CPU, where vLLM's engine would end at a seeded prompt that it reads in several steps.

vLLM draws a token for every row of a batch, also for a prompt that has been read only in part, and discards that token. So that the draw
does not count, vLLM rewinds the row's random generator by `set_offset`. Only the generators of CUDA have `set_offset`: on a CPU the call
ends the engine. The same happens to a request that continues after preemption.

`without_discarded_rows` takes the generators of these rows out of the batch for the draw, so there is nothing to rewind. `cpu_worker` has
the worker class that calls it. Without it `seeds_work` returns False, and a request that is sampled with a seed is refused.
Read in vLLM 0.32.0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

READ_IN = "0.32."
"""How the versions of vLLM begin in which this package was read. A worker for another version could end the engine."""
CPU_WORKER = "llava_gateway.engine.vllm.compat.cpu_worker.CpuWorker"


def choose_cpu_worker(arguments: "AsyncEngineArgs") -> None:
    """Have vLLM run our worker class, unless the operator has named another, or this version of vLLM has not been read.

    Touches: `AsyncEngineArgs.worker_cls`, which the CPU platform keeps if it is not "auto".
    """
    import vllm

    if arguments.worker_cls == "auto" and vllm.__version__.startswith(READ_IN):
        arguments.worker_cls = CPU_WORKER


def seeds_work(config: "VllmConfig") -> bool:
    """Return whether the engine survives a seeded prompt that it reads in several steps.

    Touches: `VllmConfig.use_v2_model_runner`; that runner samples by a token's position and never rewinds a generator.
    """
    from vllm.platforms import current_platform

    return not current_platform.is_cpu() or config.use_v2_model_runner or config.parallel_config.worker_cls == CPU_WORKER


@contextmanager
def without_discarded_rows(model_runner: Any) -> Iterator[None]:
    """Keep the random generators of rows whose token will be discarded out of the batch, within the block.

    Touches: `input_batch.generators`, `input_batch.num_reqs` and `discard_request_mask` of vLLM's model runner.
    """
    batch, discarded = model_runner.input_batch, model_runner.discard_request_mask.np
    kept = {row: batch.generators.pop(row) for row in list(batch.generators) if row < batch.num_reqs and discarded[row]}
    try:
        yield
    finally:
        batch.generators.update(kept)
