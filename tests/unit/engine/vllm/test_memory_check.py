"""A well-known model that does not fit is refused before its download, with what fits instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_gateway.engine.vllm import memory_check as module
from llava_gateway.engine.vllm.memory_check import KV_CACHE_SPACE, fit_to_machine
from llava_gateway.errors import EngineStartError
from llava_gateway.memory.machine import Gpu, Machine

SMALL, LARGE = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"
INTERLEAVE = "llava-hf/llava-interleave-qwen-7b-hf"
"""A model whose full context needs more memory than its weights."""


Check = Callable[..., list[str]]
"""Checks a model on a machine and returns the flags for vLLM."""


def cpu(gigabytes: int, *, amx: bool = True) -> Machine:
    return Machine("x86_64", gigabytes * 10**9, amx=amx)


def gpu(gigabytes: int) -> Machine:
    return Machine("x86_64", 10**12, gpus=(Gpu("NVIDIA L4", gigabytes * 10**9, (8, 9)),))


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Check:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KV_CACHE_SPACE, raising=False)

    def check(machine: Machine, model: str, *flags: str, memory_check: bool = True, cpu_build: bool | None = None) -> list[str]:
        monkeypatch.setattr(module, "is_cpu_build", lambda: not machine.gpus if cpu_build is None else cpu_build)
        monkeypatch.setattr(module, "read_machine", lambda *, cpu_build: machine)
        return list(fit_to_machine(model, flags, memory_check=memory_check))

    return check


def test_model_that_fits_is_served_with_its_flags(fit: Check) -> None:
    assert fit(cpu(24), SMALL, "--seed", "1") == ["--seed", "1"]
    assert fit(gpu(24), SMALL) == []


@pytest.mark.parametrize(
    ("machine", "model", "flags", "words"),
    [
        (cpu(16), SMALL, (), ("needs 17.8 GB", "14.1 GB for its weights", "2.1 GB for 4096 tokens", "The CPU has 16.0 GB", "--load-8bit`")),
        (cpu(16, amx=False), SMALL, (), ("`llava-gateway serve llava-1.5-7b-hf-W8A8` with a checkpoint of 8 bits",)),
        (gpu(24), LARGE, (), ("The NVIDIA L4 has 24.0 GB", "vLLM may use 22.1 GB", f"serve {LARGE} --load-8bit`")),
        (gpu(24), LARGE, ("--load-8bit", "--gpu-memory-utilization", "0.5"), ("needs 18.9 GB", "vLLM may use 12.0 GB")),
        (gpu(24), LARGE, ("--kv-cache-memory-bytes=1G",), ("vLLM may use 24.0 GB",)),
        (gpu(24), INTERLEAVE, (), (f"serve {INTERLEAVE} --max-model-len 8192`",)),
        (gpu(24), INTERLEAVE, ("--max_model_len", "16K"), ("8.6 GB for 16384 tokens",)),
        (cpu(1), SMALL, (), ("No known model fits",)),
    ],
)
def test_model_that_does_not_fit_is_refused_with_what_fits(
    fit: Check, machine: Machine, model: str, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(EngineStartError) as refused:
        fit(machine, model, *flags)
    reason = str(refused.value)
    assert reason.startswith(f"{model} needs ")
    assert reason.endswith("--memory-check off starts the server nevertheless")
    assert "\n" not in reason
    assert all(word in reason for word in words), reason


def test_smaller_model_is_proposed_that_fits_as_it_is(fit: Check) -> None:
    with pytest.raises(EngineStartError, match=r"`llava-gateway serve llava-hf/llava-interleave-qwen-0.5b-hf`; see `llava-gateway models`"):
        fit(cpu(10), SMALL)


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (SMALL, ("--load-8bit",)),
        (SMALL, ("--quantization", "fp8_per_block")),
        (INTERLEAVE, ("--max-model-len", "4096", "--load-8bit")),
        (SMALL, ("--max-model-len", "1k")),
        (SMALL, ("--max-model-len", "auto")),
        (SMALL, ("--max-model-len",)),
        (SMALL, ("--gpu-memory-utilization", "much")),
        (SMALL, ("--gpu-memory-utilization", "1.0", "--kv-cache-dtype", "fp8")),
        (SMALL, ("--hf-overrides.text_config.num_hidden_layers", "1")),
        (SMALL, ("--cpu_offload_gb", "8")),
        (SMALL, ("-tp", "2")),
        (SMALL, ("--load-format", "dummy")),
        ("llava-demo", ()),
        ("some/other-model", ()),
    ],
)
def test_start_that_could_succeed_is_not_refused(fit: Check, model: str, flags: tuple[str, ...]) -> None:
    fit(cpu(18), model, *flags)


def test_operator_and_directory_override_the_check(fit: Check, tmp_path: Path) -> None:
    assert fit(cpu(8), LARGE, memory_check=False) == []
    (tmp_path / LARGE).mkdir(parents=True)
    assert fit(cpu(8), LARGE) == []


def test_machine_is_not_read_for_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_machine", lambda **options: pytest.fail("the machine was read"))
    assert fit_to_machine("some/model", ["--seed", "1"], memory_check=True) == ["--seed", "1"]


def test_unknown_gpu_is_not_taken_for_a_cpu(fit: Check) -> None:
    assert fit(cpu(8), LARGE, cpu_build=False) == []


def test_explicit_kv_cache_of_a_cpu_leaves_all_memory(fit: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KV_CACHE_SPACE, "3")
    assert fit(cpu(18), SMALL) == []


def test_underscores_of_llavas_flags_are_read(fit: Check) -> None:
    assert "fp8_per_block" in fit(cpu(24), "some/model", "--load_8bit")
