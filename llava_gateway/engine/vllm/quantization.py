"""Weights of fewer bits: which methods there are here, and which the CPU can run. vLLM itself finds out in a process of its own, which ends
with a traceback."""

from typing import Any

from llava_gateway.engine import EngineStartError

ON_CPU = ("awq", "auto_awq", "gptq", "auto_gptq", "compressed-tensors", "int8_per_channel_weight_only")
CPU_BITS = 4
"""Of AWQ's and GPTQ's weights; vLLM's kernels for the CPU know no others."""


def check_quantization(config: dict[str, Any], asked: str | None) -> None:
    """`config`: the checkpoint's config.json; `asked`: vLLM's --quantization. Imports vLLM. Raises EngineStartError."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform

    parts = (config, config.get("text_config"))
    keys = ("quantization_config", "compression_config")
    found: dict[str, Any] = next(
        (part[key] for part in parts if isinstance(part, dict) for key in keys if isinstance(part.get(key), dict)), {}
    )
    method = str(asked or found.get("quant_method") or "")
    if not method:
        return
    named = f"--quantization {method}" if asked else f"the checkpoint's quantisation, {method},"
    if method not in QUANTIZATION_METHODS:
        raise EngineStartError(f"{named} is none that this vLLM knows; it knows {', '.join(QUANTIZATION_METHODS)}")
    if not current_platform.is_cpu():
        return
    cannot = f"{named} does not run on a CPU"
    if method not in ON_CPU:
        raise EngineStartError(f"{cannot}; these do: {', '.join(ON_CPU)}")
    if (bits := found.get("bits", CPU_BITS)) != CPU_BITS:
        raise EngineStartError(f"{cannot} with {bits} bits; it does with {CPU_BITS}")
