"""Whether a model fits: the arithmetic, and the commands that follow from it."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.memory.fit import (
    CONTEXT_STEP,
    MIN_CONTEXT,
    OVERHEAD,
    Bits,
    Fit,
    best_fit,
    gigabytes,
    longest_context,
    needed_bytes,
    quantize_command,
    serve_command,
    usable_bytes,
    weight_bytes,
)
from llava_gateway.memory.machine import Gpu, Machine
from llava_gateway.memory.models import KnownModel, find_model

MEMORY = st.integers(0, 1 << 43)
BITS = st.sampled_from((16, 8, 4))
CPU, CPU_WITH_AMX = Machine("x86_64", 1 << 35), Machine("x86_64", 1 << 35, amx=True)


@st.composite
def models(draw: st.DrawFn) -> KnownModel:
    parameters = draw(st.integers(1, 10**12))
    quantizable = draw(st.integers(0, parameters))
    return KnownModel("some/model", "llava", parameters, quantizable, draw(st.integers(1, 1 << 22)), draw(st.integers(1, 1 << 20)))


def known(name: str) -> KnownModel:
    model = find_model(name)
    assert model
    return model


@given(models())
def test_fewer_bits_never_need_more_memory(model: KnownModel) -> None:
    assert 2 * model.parameters == weight_bytes(model, 16) >= weight_bytes(model, 8) >= weight_bytes(model, 4)
    assert weight_bytes(model, 4) >= model.parameters // 2


@given(models(), BITS, MEMORY)
def test_proposed_context_is_the_longest_that_fits(model: KnownModel, bits: Bits, memory: int) -> None:
    context = longest_context(model, bits, memory)
    if not context:
        assert needed_bytes(model, bits, min(MIN_CONTEXT, model.context)) > memory
        return
    assert needed_bytes(model, bits, context) <= memory
    assert min(MIN_CONTEXT, model.context) <= context <= model.context
    assert context == model.context or needed_bytes(model, bits, context + CONTEXT_STEP) > memory


@given(models(), MEMORY, MEMORY, st.booleans())
def test_more_memory_never_makes_a_fit_worse(model: KnownModel, memory: int, more: int, amx: bool) -> None:
    machine = CPU_WITH_AMX if amx else CPU
    fit, better = best_fit(model, machine, memory), best_fit(model, machine, memory + more)
    if fit:
        assert better
        assert (better.bits, better.context) >= (fit.bits, fit.context)
        assert fit.made_first == (fit.bits == 4 or (fit.bits == 8 and not amx))
        assert needed_bytes(model, fit.bits, fit.context) <= memory
    elif better:
        assert needed_bytes(model, better.bits, better.context) > memory


@given(st.integers(0, 1 << 50))
def test_machine_keeps_a_share_of_its_memory(size: int) -> None:
    assert 0 <= usable_bytes(Machine("x86_64", size)) <= size


@pytest.mark.parametrize(
    ("name", "gigabytes_of_memory", "fit", "command"),
    [
        ("llava-hf/llava-1.5-7b-hf", 24, Fit(16, 4096, made_first=False), "llava-gateway serve llava-hf/llava-1.5-7b-hf"),
        ("llava-hf/llava-1.5-7b-hf", 16, Fit(8, 4096, made_first=False), "llava-gateway serve llava-hf/llava-1.5-7b-hf --load-8bit"),
        ("llava-hf/llava-1.5-7b-hf", 9, Fit(4, 4096, made_first=True), "llava-gateway serve llava-1.5-7b-hf-W4A16"),
        (
            "llava-hf/llava-interleave-qwen-7b-hf", 24, Fit(16, 8192, made_first=False),
            "llava-gateway serve llava-hf/llava-interleave-qwen-7b-hf --max-model-len 8192",
        ),
    ],
)  # fmt: skip
def test_gpu_serves_the_model_with_the_most_bits(name: str, gigabytes_of_memory: int, fit: Fit, command: str) -> None:
    machine = Machine("x86_64", 1 << 40, gpus=(Gpu("GPU", gigabytes_of_memory * 10**9, (8, 9)),))
    assert best_fit(known(name), machine, usable_bytes(machine)) == fit
    assert serve_command(known(name), fit) == command


def test_model_that_is_too_large_in_every_form_has_no_fit() -> None:
    assert best_fit(known("llava-hf/llava-v1.6-34b-hf"), CPU, 10**10) is None
    assert best_fit(known("llava-demo"), CPU, OVERHEAD - 1) is None


@pytest.mark.parametrize("name", ["llava-hf/llava-1.5-7b-hf", 'it\'s/a "model" $(here)/', "C:\\llava"])
def test_command_survives_the_shell_and_python(name: str) -> None:
    python, option, code = shlex.split(quantize_command(name, 4))
    assert (python, option) == ("python", "-c")
    calls: list[tuple[object, ...]] = []
    line = code.partition("; ")[2]
    eval(line, {"model_free_ptq": lambda *arguments, ignore: calls.append((*arguments, len(ignore)))})
    assert calls == [(name, f"{name.rstrip('/').rpartition('/')[2]}-W4A16", "W4A16", 1)]


def test_sizes_are_decimal() -> None:
    assert gigabytes(14_126_854_144) == "14.1 GB"
