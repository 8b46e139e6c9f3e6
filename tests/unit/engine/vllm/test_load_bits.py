"""LLaVA's `--load-8bit` and `--load-4bit` become vLLM's flags, or a refusal that names the remedy."""

import json
from itertools import pairwise

import pytest

from llava_gateway.engine.vllm.load_bits import IGNORED, loads_quantized, replace_load_bits
from llava_gateway.errors import EngineStartError
from llava_gateway.memory.machine import Gpu, Machine

MODEL = "llava-hf/llava-1.5-7b-hf"
CPU, CPU_WITH_AMX = Machine("x86_64", 1 << 35), Machine("x86_64", 1 << 35, amx=True)
L4 = Machine("x86_64", 1 << 35, gpus=(Gpu("NVIDIA L4", 24 << 30, (8, 9)),))
P100 = Machine("x86_64", 1 << 35, gpus=(Gpu("Tesla P100", 16 << 30, (6, 0)),))
KEPT = ["--quantization-config", json.dumps({"ignore": IGNORED})]


@pytest.mark.parametrize("machine", [CPU, CPU_WITH_AMX, L4, P100])
def test_flags_without_llavas_are_unchanged(machine: Machine) -> None:
    flags = ["--seed", "1", "--load-format", "auto"]
    assert not loads_quantized(flags)
    assert replace_load_bits(MODEL, flags, machine) == flags


def test_8_bits_are_the_quantization_of_the_device() -> None:
    flags = ["--seed", "1", "--load-8bit"]
    assert loads_quantized(flags)
    assert replace_load_bits(MODEL, flags, L4) == ["--quantization", "fp8_per_tensor", *KEPT, "--seed", "1"]
    cpu = ["--dtype", "bfloat16", "--quantization", "fp8_per_block", *KEPT, "--seed", "1"]
    assert replace_load_bits(MODEL, flags, CPU_WITH_AMX) == cpu


def test_operators_dtype_has_priority() -> None:
    """vLLM takes the last one."""
    flags = replace_load_bits(MODEL, ["--load-8bit", "--dtype", "half"], CPU_WITH_AMX)
    assert [value for flag, value in pairwise(flags) if flag == "--dtype"] == ["bfloat16", "half"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--load-8bit", "--quantization", "awq"],
        ["-q", "awq", "--load-4bit"],
        ["--load-8bit", "--quantization=awq"],
        ["--load-8bit", "--quantization_config", "{}"],
        ["--load-4bit", "--load-8bit"],
    ],
)
def test_two_quantizations_are_refused(flags: list[str]) -> None:
    with pytest.raises(EngineStartError, match=r"^--load-\dbit and --\S+ exclude each other$"):
        replace_load_bits(MODEL, flags, L4)


@pytest.mark.parametrize(
    ("flag", "machine", "words"),
    [
        ("--load-4bit", CPU_WITH_AMX, ("4 bits", '"llava-1.5-7b-hf-W4A16", "W4A16"', "serve the directory llava-1.5-7b-hf-W4A16")),
        ("--load-4bit", L4, ("4 bits", '"llava-1.5-7b-hf-W4A16", "W4A16"')),
        ("--load-8bit", CPU, ("8 bits", "the CPU has no AMX", '"llava-1.5-7b-hf-W8A8", "W8A8"')),
        ("--load-8bit", None, ("nvidia-smi lists no GPU", '"llava-1.5-7b-hf-W8A8", "W8A8"')),
        ("--load-8bit", P100, ("8 bits", "the GPU is older than Turing", '"llava-1.5-7b-hf-W8A8", "W8A8"')),
    ],
)
def test_impossible_quantization_is_refused_with_the_command_that_makes_a_checkpoint(
    flag: str, machine: Machine | None, words: tuple[str, ...]
) -> None:
    with pytest.raises(EngineStartError) as refused:
        replace_load_bits(MODEL, [flag], machine)
    reason = str(refused.value)
    assert reason.startswith(f"{flag}: ")
    assert "\n" not in reason
    assert "pip install llmcompressor" in reason
    assert all(word in reason for word in words), reason
