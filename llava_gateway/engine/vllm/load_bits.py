"""LLaVA's flags `--load-8bit` and `--load-4bit`, which quantize the weights of an ordinary checkpoint while it loads."""

import json
from collections.abc import Sequence

from llava_gateway.errors import EngineStartError
from llava_gateway.memory.fit import Bits, checkpoint_name, quantize_command
from llava_gateway.memory.machine import Machine

FLAGS: dict[str, Bits] = {"--load-8bit": 8, "--load-4bit": 4}
"""LLaVA's flags with the bits of a weight."""
IGNORED = ["*vision_tower*", "*multi_modal_projector*"]
"""The layers that keep 16 bits, as patterns of vLLM. They are few, and vLLM's kernel for CPUs cannot compute with the sizes of SigLIP."""


def loads_quantized(flags: Sequence[str]) -> bool:
    """Return whether LLaVA's flags are among the flags."""
    return any(flag in FLAGS for flag in flags)


def replace_load_bits(model: str, flags: Sequence[str], machine: Machine | None) -> list[str]:
    """Return the flags with vLLM's --quantization instead of LLaVA's flags.

    `model`: a directory, or a name on the Hugging Face Hub. `machine`: None if the device that vLLM will use is not known. Raises
    EngineStartError if vLLM has no such quantization for the machine. The message has the command that makes a quantized checkpoint.
    """
    asked = [flag for flag in FLAGS if flag in flags]
    others = [flag for flag in flags if flag not in FLAGS]
    if not asked:
        return others
    flag = asked[0]
    if len(asked) > 1:
        raise EngineStartError(f"{asked[0]} and {asked[1]} exclude each other")
    if any(other == "-q" or other.startswith(("-q=", "--quantization")) for other in others):
        raise EngineStartError(f"{flag} and --quantization exclude each other")
    bits = FLAGS[flag]
    if bits == 8 and machine and machine.quantization:
        # vLLM's kernel for CPUs takes no float16, in which LLaVA-1.5 is stored. A --dtype among the other flags has priority.
        dtype = () if machine.gpus else ("--dtype", "bfloat16")
        ignored = json.dumps({"ignore": IGNORED})
        return [*dtype, "--quantization", machine.quantization, "--quantization-config", ignored, *others]
    why = f"vLLM has no quantization to {bits} bits that it can make on this machine while it loads a model"
    if machine is None:
        why = "nvidia-smi lists no GPU"
    elif bits == 8:
        why += ", because the GPU is older than Turing" if machine.gpus else ", because the CPU has no AMX"
    raise EngineStartError(
        f"{flag}: {why}. Make a quantized checkpoint once: in another environment run `pip install llmcompressor` and "
        f"`{quantize_command(model, bits)}`, and serve the directory {checkpoint_name(model, bits)} without {flag}"
    )
