"""Engines of other kinds start and answer: quantized weights, LoRA adapters, and two GPUs."""

import os
from pathlib import Path

import httpx
import pytest
from gpu.served import Note, has_ended, serve_shapes
from helpers import lora
from helpers.gpu import Device
from helpers.requests import MODEL, body, image
from helpers.server import serve
from helpers.waiting import wait_for

from llava_gateway.demo.images import Grid, describe
from llava_gateway.memory.machine import has_amx

GRID: Grid = ("red", "blue", "green", "orange")


@pytest.mark.parametrize("flags", [("--load-8bit",), ("--quantization", "fp8_per_tensor")], ids=" ".join)
def test_weights_are_quantized_while_loading(
    device: Device, shapes: Path, note: Note, tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...]
) -> None:
    """Without compilation and CUDA graphs, which would take a minute for each method."""
    if device.kind == "cpu" and (flags != ("--load-8bit",) or not has_amx(Path("/"))):
        pytest.skip(f"{' '.join(flags)} does not run on this CPU")
    dtype = ("--dtype", "bfloat16") if device.kind == "cpu" else ()  # vLLM's kernel for CPUs takes no half precision
    with serve_shapes(device, shapes, tmp_path_factory.mktemp("quantized"), *flags, *dtype, "--enforce-eager") as served:
        assert served.ask()["usage"]["completion_tokens"] == 8
        note(f"{shapes.name}, {' '.join(flags)}: {served.summary()}")


def test_adapter_and_base_model_give_their_own_answers(tmp_path: Path) -> None:
    """In half precision: vLLM's kernels for adapters on a GPU take no single precision, in which the demo model runs otherwise."""
    lora.train(tmp_path / "corner")
    with serve(tmp_path, "--dtype", "half", "--lora-modules", f"corner={tmp_path / 'corner'}") as server:
        for model, answer in ((MODEL, describe([GRID])), ("corner", "Red.")):
            asked = httpx.post(f"{server.v1}/chat/completions", json=body(image(GRID), lora.ASKED, model=model), timeout=120)
            assert asked.json()["choices"][0]["message"]["content"] == answer


def test_two_gpus_share_a_model_and_are_free_after_its_death(
    device: Device, shapes: Path, note: Note, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of the GPUs outlive the engine's first process."""
    if device.kind == "cuda" and len(device.cards) < 2:
        pytest.skip("this machine has one GPU")
    if device.kind == "cpu":
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, sorted(os.sched_getaffinity(0))[:2])))
    with serve_shapes(device, shapes, tmp_path_factory.mktemp("two"), "--tensor-parallel-size", "2", "--enforce-eager") as served:
        assert served.ask()["usage"]["completion_tokens"] == 8
        note(f"{shapes.name}, --tensor-parallel-size 2: {served.summary()}")
        killed = served.processes()
        assert len(killed) > 2
        killed[0].kill()
        wait_for(lambda: not served.is_ready())
        wait_for(served.is_ready, 120, served.server.log.read_text)
        assert all(map(has_ended, killed))
        assert served.ask()["usage"]["completion_tokens"] == 8
