"""The worker class that vLLM runs on a CPU, in the engine's own process. Importing this file imports vLLM.

vLLM finds the class by its name, `seeds.CPU_WORKER`. `seeds`, `named_tokens` and `use_float_biases` say why the class exists. Read in
vLLM 0.32.0.
"""

from typing import Any

from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
from vllm.v1.worker.cpu_worker import CPUWorker

from llava_gateway.engine.vllm.compat.named_tokens import keep_likeliest_tokens
from llava_gateway.engine.vllm.compat.seeds import without_discarded_rows


class CpuWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, which survives a seeded prompt that is read in several steps, and keeps the log probabilities of a batch apart.

    It also computes with FP8 weights in layers that have a bias.

    Touches: `CPUWorker.load_model`, `CPUWorker.sample_tokens`, `CPUWorker.use_v2_model_runner`, `CPUWorker.model_runner` and the runner's
    `sampler` and `get_model`.
    """

    def load_model(self, **options: Any) -> None:
        """Load the weights. `options`: vLLM's own."""
        super().load_model(**options)
        use_float_biases(self.model_runner.get_model())
        if not self.use_v2_model_runner:
            keep_likeliest_tokens(self.model_runner.sampler)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample the next token of each row of a batch, and return vLLM's own output object.

        `grammar_output`: vLLM's bitmask of the tokens that structured outputs allow, or None. It is passed on unread.
        A row of a prompt that is read only in part gets a token, too. vLLM discards it.
        """
        if self.use_v2_model_runner:  # this runner samples by a token's position and never rewinds a generator
            return super().sample_tokens(grammar_output)
        with without_discarded_rows(self.model_runner):
            return super().sample_tokens(grammar_output)


def use_float_biases(model: Any) -> None:
    """Convert the biases of a model's layers with FP8 weights to single precision. `model`: a `torch.nn.Module`.

    vLLM's kernel for these weights takes no other biases, and the engine would end at the first request. The layers of Llama and Mistral
    have no bias; the attention of Qwen2 has one.

    Touches: `LinearBase.quant_method`, `Fp8PerBlockOnlineLinearMethod.fp8_linear` and `CPUFp8BlockScaledMMKernel`.
    Without it: LLaVA-OneVision and LLaVA-Interleave do not start with `--load-8bit` on a CPU.
    """
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "fp8_linear", None)
        if isinstance(kernel, CPUFp8BlockScaledMMKernel) and layer.bias is not None:
            layer.bias.data = layer.bias.data.float()
