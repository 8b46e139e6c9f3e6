"""The arithmetic: whether a model fits into a memory, and in which form."""

import json
import shlex
from dataclasses import dataclass
from typing import Literal

from llava_gateway.memory.machine import Machine
from llava_gateway.memory.models import KnownModel

Bits = Literal[16, 8, 4]
WEIGHT_BYTES: dict[Bits, float] = {16: 2, 8: 1, 4: 0.5 + 2 / 128}
"""The size of a quantized weight, in bytes. At 4 bits, 128 weights share a scale of 16 bits."""
UTILIZATION = 0.92
"""The share of the device's memory that vLLM uses: the default of --gpu-memory-utilization, which counts on a CPU, too."""
CPU_CACHE = 4 << 30
"""The KV cache on a CPU in bytes, unless one request needs more. vLLM's own default is all that is left of 92 % of the memory."""
OVERHEAD = 1_500_000_000
"""What the engine needs besides weights and KV cache, in bytes: its libraries, and the activations of a batch."""
MIN_CONTEXT = 4096
"""The shortest context that is proposed, in tokens. An image takes up to 2928 of them in LLaVA-NeXT."""
CONTEXT_STEP = 1024
SCHEMES: dict[Bits, str] = {8: "W8A8", 4: "W4A16"}
"""llm-compressor's names of the forms with quantized weights."""
IGNORED = "re:.*(vision_tower|multi_modal_projector|embed_tokens|lm_head).*"
"""The layers that keep 16 bits, as a pattern of llm-compressor."""


@dataclass(frozen=True)
class Fit:
    """A form in which a model fits."""

    bits: Bits
    """Of the language model's weights."""
    context: int
    """In tokens. It may be shorter than the model's own."""
    made_first: bool
    """Whether a quantized checkpoint must be made first. Otherwise vLLM can load the original one."""


def weight_bytes(model: KnownModel, bits: Bits) -> int:
    """Return the size of a model's weights, in bytes."""
    return round(2 * (model.parameters - model.quantizable) + WEIGHT_BYTES[bits] * model.quantizable)


def needed_bytes(model: KnownModel, bits: Bits, context: int) -> int:
    """Return the memory that a model needs for one request of full context, in bytes."""
    return weight_bytes(model, bits) + context * model.kv_bytes + OVERHEAD


def longest_context(model: KnownModel, bits: Bits, memory: int) -> int:
    """Return the longest context that fits into a memory, in tokens, and at most the model's own. 0: not even MIN_CONTEXT fits."""
    tokens = (memory - needed_bytes(model, bits, 0)) // model.kv_bytes
    if tokens >= model.context:
        return model.context
    tokens -= tokens % CONTEXT_STEP
    return tokens if tokens >= min(MIN_CONTEXT, model.context) else 0


def usable_bytes(machine: Machine, utilization: float = UTILIZATION) -> int:
    """Return the memory that vLLM uses of one device, in bytes. On a CPU other programs keep what they have."""
    share = int(machine.memory * utilization)
    return share if machine.gpus else min(share, machine.cpu_free)


def cpu_cache_bytes(request: int, free: int) -> int:
    """Return the size of a KV cache that leaves a CPU's memory to other programs, too, in bytes.

    It is a quarter of the free memory and at most CPU_CACHE, but always enough for one request.
    `request`: the size of one request of full context. `free`: the free memory. Both are in bytes.
    """
    return max(request, min(CPU_CACHE, free // 4))


def best_fit(model: KnownModel, machine: Machine, memory: int) -> Fit | None:
    """Return the form with the most bits that fits into a memory, in bytes. A shorter context is better than fewer bits."""
    for bits in WEIGHT_BYTES:
        if context := longest_context(model, bits, memory):
            return Fit(bits, context, made_first=bits == 4 or (bits == 8 and machine.quantization is None))
    return None


def checkpoint_name(name: str, bits: Bits) -> str:
    """Return the directory of a quantized checkpoint of a model."""
    return f"{name.rstrip('/').rpartition('/')[2]}-{SCHEMES[bits]}"


def quantize_command(name: str, bits: Bits) -> str:
    """Return the command that makes a quantized checkpoint of a model, by the package `llmcompressor`."""
    source, target, scheme, ignored = map(json.dumps, (name, checkpoint_name(name, bits), SCHEMES[bits], IGNORED))
    call = f"model_free_ptq({source}, {target}, {scheme}, ignore=[{ignored}])"
    return f"python -c {shlex.quote(f'from llmcompressor import model_free_ptq; {call}')}"


def serve_command(model: KnownModel, fit: Fit) -> str:
    """Return the command that serves a model in a form that fits."""
    name = checkpoint_name(model.name, fit.bits) if fit.made_first else model.name
    bits = () if fit.made_first or fit.bits == 16 else ("--load-8bit",)
    context = () if fit.context == model.context else ("--max-model-len", str(fit.context))
    return " ".join(("llava-gateway", "serve", name, *bits, *context))


def gigabytes(size: int) -> str:
    """Return a size in bytes as a text for people. 1 GB is 10^9 bytes."""
    return f"{size / 1e9:.1f} GB"
