"""Log probabilities of the tokens that a request names (`logprob_token_ids`), beside requests for those of the likeliest tokens.

vLLM's older model runner, which serves CPUs, returns either the one or the other for a whole batch: the requests for the likeliest tokens
would get padding. `keep_likeliest_tokens` names the likeliest tokens of these rows, too. `cpu_worker` calls it. Without it
`named_tokens_work` returns False, and a request that names tokens is refused. Read in vLLM 0.32.0.
"""

from typing import TYPE_CHECKING, Any

from llava_gateway.engine.vllm.compat.seeds import CPU_WORKER

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MAX_LIKELIEST = 20
"""The greatest number of likeliest tokens that a request of the gateway asks for."""


def named_tokens_work(config: "VllmConfig") -> bool:
    """Return whether requests may name tokens.

    Touches: `VllmConfig.use_v2_model_runner`; that runner chooses the tokens for each row.
    """
    return bool(config.use_v2_model_runner) or config.parallel_config.worker_cls == CPU_WORKER


def keep_likeliest_tokens(sampler: Any) -> None:
    """Have vLLM's sampler return the likeliest tokens of each row that names none. vLLM cuts the list to the number that a request wants.

    Touches: `Sampler.gather_specific_token_logprobs`, which is replaced for this sampler.
    """
    gather = sampler.gather_specific_token_logprobs

    def gather_of_all_rows(logprobs: Any, token_ids: dict[int, list[int]], sampled: Any) -> Any:
        others = [row for row in range(logprobs.shape[0]) if row not in token_ids]
        if others:
            likeliest = logprobs[others].topk(min(MAX_LIKELIEST, logprobs.shape[1])).indices.tolist()
            token_ids = token_ids | dict(zip(others, likeliest, strict=True))
        return gather(logprobs, token_ids, sampled)

    sampler.gather_specific_token_logprobs = gather_of_all_rows
