"""The worker that vLLM runs on a CPU, in the engine's process. vLLM finds it by name (`compat.CPU_WORKER`)."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from llava_gateway.engine.vllm.compat import without_discarded_rows


class CpuWorker(CPUWorker):  # type: ignore[misc]
    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.use_v2_model_runner:  # it draws by a token's position, and never rewinds
            return super().sample_tokens(grammar_output)
        with without_discarded_rows(self.model_runner):
            return super().sample_tokens(grammar_output)
