"""The check that a well-known model of the Hugging Face Hub fits into this machine's memory. It runs before the download."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from llava_gateway.engine.vllm.checkpoint import SERVED
from llava_gateway.engine.vllm.compat.engine_process import is_cpu_build
from llava_gateway.engine.vllm.load_bits import loads_quantized, replace_load_bits
from llava_gateway.errors import EngineStartError
from llava_gateway.memory.fit import (
    OVERHEAD,
    UTILIZATION,
    Bits,
    best_fit,
    gigabytes,
    needed_bytes,
    serve_command,
    usable_bytes,
    weight_bytes,
)
from llava_gateway.memory.machine import Machine, read_machine
from llava_gateway.memory.models import MODELS, KnownModel, find_model

UNCHECKED = (
    *("--hf-config-path", "--hf-overrides", "--quantization-config", "--load-format", "--kv-cache-dtype", "--cpu-offload", "--offload"),
    *("--tensor-parallel", "-tp", "--pipeline-parallel", "-pp", "--data-parallel", "-dp"),
)
"""Beginnings of vLLM's flags that change how much memory a model needs, or which. With one of them nothing is checked."""
QUANTIZATIONS: dict[str, Bits] = {"fp8_per_tensor": 8, "fp8_per_block": 8, "fp8_per_channel": 8}
"""The values of --quantization that change how much memory the weights need, with their bits."""
UNDERSCORED = re.compile(r"^--[^.=]*")
"""The part of a flag in which vLLM takes underscores for hyphens."""
UNITS = {"": 1, "k": 1000, "K": 1 << 10, "m": 1000**2, "M": 1 << 20, "g": 1000**3, "G": 1 << 30}
"""The units of vLLM's numbers."""
KV_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's variable with the size of the KV cache on a CPU. If it is set, vLLM takes no share of the memory."""


def fit_to_machine(model: str, flags: Sequence[str], *, memory_check: bool) -> Sequence[str]:
    """Return the flags for vLLM, without LLaVA's `--load-8bit` and `--load-4bit`. Raises EngineStartError.

    `model`: a directory, or a name on the Hugging Face Hub. `flags`: vLLM's own, and LLaVA's. `memory_check`: whether a well-known model of
    the hub that does not fit into the memory is refused. The message then says what fits.
    """
    flags = [UNDERSCORED.sub(lambda found: found[0].replace("_", "-"), flag) for flag in flags]
    known = find_model(model)
    checked = memory_check and known and not Path(model).is_dir() and not any(flag.startswith(UNCHECKED) for flag in flags)
    if not checked and not loads_quantized(flags):  # reading the machine would take time
        return flags
    cpu_build = is_cpu_build()
    machine = read_machine(cpu_build=cpu_build)
    is_known = cpu_build or bool(machine.gpus)
    flags = replace_load_bits(model, flags, machine if is_known else None)
    if checked and known and is_known:
        check_memory(known, flags, machine)
    return flags


def check_memory(model: KnownModel, flags: Sequence[str], machine: Machine) -> None:
    """Raise EngineStartError if a model does not fit into the memory of a machine. `flags`: vLLM's own."""
    given = _memory_flags(flags)
    if given is None:
        return
    context = min(given.context or model.context, model.context)
    memory = machine.memory if given.kv_cache_bytes or os.environ.get(KV_CACHE_SPACE) else usable_bytes(machine, given.utilization)
    needed = needed_bytes(model, given.bits, context)
    if needed <= memory:
        return
    parts = (
        f"{gigabytes(weight_bytes(model, given.bits))} for its weights",
        f"{gigabytes(context * model.kv_bytes)} for {context} tokens of context",
        f"and {gigabytes(OVERHEAD)} for the engine",
    )
    raise EngineStartError(
        f"{model.name} needs {gigabytes(needed)} of memory: {', '.join(parts)}. The {machine.device} has {gigabytes(machine.memory)}, and "
        f"vLLM may use {gigabytes(memory)} of them. {_advice(model, machine, memory)}. --memory-check off starts the server nevertheless"
    )


class _Given(argparse.Namespace):
    bits: Bits
    context: int | None
    utilization: float
    kv_cache_bytes: str | None


def _memory_flags(flags: Sequence[str]) -> _Given | None:
    """Return the flags that decide how much memory is needed. None: a value cannot be read here, and vLLM reads or refuses it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--quantization", "-q", dest="bits", type=lambda method: QUANTIZATIONS.get(method, 16), default=16)
    parser.add_argument("--max-model-len", dest="context", type=_number)
    parser.add_argument("--gpu-memory-utilization", dest="utilization", type=float, default=UTILIZATION)
    parser.add_argument("--kv-cache-memory-bytes", dest="kv_cache_bytes")
    try:
        return parser.parse_known_args(flags, _Given())[0]
    except argparse.ArgumentError:
        return None


def _number(text: str) -> int:
    """Return a number as vLLM reads it, such as 4096, 4k or 4.5K. Raises ValueError for others, such as `auto`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if not found:
        raise ValueError(text)
    return int(float(found[1]) * UNITS[found[2]])


def _advice(model: KnownModel, machine: Machine, memory: int) -> str:
    """Return what fits instead: the model itself in another form, and the largest smaller model as it is."""
    proposals = []
    if fit := best_fit(model, machine, memory):
        made = f" with a checkpoint of {fit.bits} bits, which docs/models.md says how to make" if fit.made_first else ""
        proposals.append(f"`{serve_command(model, fit)}`{made}")
    for other in reversed(MODELS):
        fit = best_fit(other, machine, memory)
        if other.model_type in SERVED and other.parameters < model.parameters and fit and fit.bits == 16:
            proposals.append(f"`{serve_command(other, fit)}`")
            break
    return f"What fits: {', or '.join(proposals)}; see `llava-gateway models`" if proposals else "No known model fits"
