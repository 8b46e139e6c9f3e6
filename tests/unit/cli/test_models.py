"""`llava-gateway models` on machines of several kinds."""

import json

import pytest

from llava_gateway.cli import models
from llava_gateway.engine.vllm.checkpoint import SERVED
from llava_gateway.memory.machine import Gpu, Machine
from llava_gateway.memory.models import MODELS

L4 = Machine("x86_64", 64 * 10**9, gpus=(Gpu("NVIDIA L4", 24 * 10**9, (8, 9)),))
SMALL_CPU = Machine("aarch64", 8 * 10**9)


def listed(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(models, "read_machine", lambda *, cpu_build: machine)
    assert models.main(arguments) == 0
    return capsys.readouterr().out


def test_each_model_has_its_command_or_is_too_large(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(L4, monkeypatch, capsys)
    assert text.startswith("This machine: x86_64, 64.0 GB of memory, NVIDIA L4 with 24.0 GB. vLLM uses up to 22.1 GB for one model.\n")
    assert all(f"\n{model.name} " in text or f"\n  {model.name}, " in text for model in MODELS if model.model_type in SERVED)
    rows = {line.split()[0]: line for line in text.splitlines() if "  llava-gateway serve" in line}
    assert rows["llava-hf/llava-1.5-7b-hf"].split()[3:] == "16 4096 17.8 GB llava-gateway serve llava-hf/llava-1.5-7b-hf".split()
    assert rows["llava-hf/llava-1.5-13b-hf"].endswith("llava-gateway serve llava-hf/llava-1.5-13b-hf --load-8bit")


def test_checkpoint_that_must_be_made_first_has_its_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(SMALL_CPU, monkeypatch, capsys)
    assert "no GPU that this vLLM uses" in text
    (row,) = (line for line in text.splitlines() if line.startswith("llava-hf/llava-v1.6-mistral-7b-hf "))
    assert " 4*  " in row
    assert row.endswith("llava-gateway serve llava-v1.6-mistral-7b-hf-W4A16 --max-model-len 8192")
    assert "\n  python -c 'from llmcompressor import model_free_ptq" in text
    large = text.partition("\nToo large for this machine:\n")[2].splitlines()
    assert "  llava-hf/llava-1.5-13b-hf, whose weights have 7.9 GB at 4 bits" in large


def test_scripts_read_the_same_from_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(listed(L4, monkeypatch, capsys, "--json"))
    gpu = {"name": "NVIDIA L4", "memory": 24 * 10**9, "capability": "8.9"}
    assert found["machine"]["gpus"] == [gpu]
    by_name = {model["name"]: model for model in found["models"]}
    small, large = by_name["llava-hf/llava-1.5-7b-hf"], by_name["llava-hf/llava-v1.6-34b-hf"]
    assert (small["weights"]["16"], small["weights"]["8"]) == (14_126_854_144, 7_650_848_768)
    assert small["fits"]["command"] == "llava-gateway serve llava-hf/llava-1.5-7b-hf"
    assert small["fits"]["checkpoint"] is None
    assert large["fits"] is None


def test_scripts_get_the_command_that_makes_a_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(listed(SMALL_CPU, monkeypatch, capsys, "--json"))
    (mistral,) = (model for model in found["models"] if model["name"] == "llava-hf/llava-v1.6-mistral-7b-hf")
    assert (mistral["fits"]["bits"], mistral["fits"]["context"]) == (4, 8192)
    assert mistral["fits"]["checkpoint"].startswith("python -c ")
