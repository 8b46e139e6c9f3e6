"""The parts of `make test-gpu` and `make bench-gpu` that read nvidia-smi and vLLM's metrics, and the results of a run that was cut off."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from bench import gpu as benchmark
from bench import peers
from bench.engine_load import EngineLoad
from bench.peers import Served, _without
from helpers import gpu
from helpers.gpu import Device, find_device, utilisation
from helpers.llava_15_shapes import VOCABULARY, write_checkpoint
from tokenizers import Tokenizer

SMI = """\
#!/bin/sh
echo "$*" >>"$0.calls"
case "$*" in
*name,memory.total*) printf 'NVIDIA H200, 143771\\nNVIDIA H200, 143771\\n' ;;
*memory.used*) printf '15000\\n500\\n' ;;
*pid,used_memory*) printf '11, 14000\\n12, 900\\n13, [N/A]\\n' ;;
*utilization.gpu*) printf '40\\n[N/A]\\n80\\n' && exec sleep 60 ;;
esac
"""
METRICS = """\
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_count{{engine="0"}} {steps}
vllm:iteration_tokens_total_sum{{engine="0"}} {tokens}
vllm:request_inference_time_seconds_sum{{engine="0"}} {running}
vllm:request_queue_time_seconds_sum{{engine="0"}} {waiting}
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers like nvidia-smi on a machine with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "vllm_version", lambda: ("0.32.0", "cuda"))
    return program


def test_cards_and_their_memory_are_read(smi: Path) -> None:
    device = find_device("cuda")
    assert device.name == "2 x NVIDIA H200 (140 GiB)"
    assert device.memory_used() == 15500
    assert device.memory_of({11, 13, 14}) == 14000


def test_only_visible_gpus_count(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    find_device("cuda")
    assert smi.with_suffix(".calls").read_text().startswith("--id=1 ")


def test_utilisation_is_sampled_while_a_block_runs(smi: Path) -> None:
    with utilisation(Device("cuda", ("a card",))) as found:
        while not smi.with_suffix(".calls").exists():
            pass
        assert found.mean() is None
    assert found.samples in ([], [40, 80])  # none if the program was ended before it wrote


def test_device_without_its_vllm_is_refused(smi: Path) -> None:
    with pytest.raises(RuntimeError, match="built for cuda; install the extra 'cpu'"):
        find_device("cpu")
    smi.unlink()
    with pytest.raises(RuntimeError, match="finds no GPU"):
        find_device("cuda")


def test_requests_outside_of_the_engine_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ten seconds, 4 clients kept 1.5 requests in the engine's batches and 0.5 in its queue."""
    pages = iter([METRICS.format(steps=10, tokens=50, running=1, waiting=0), METRICS.format(steps=30, tokens=250, running=16, waiting=5)])
    monkeypatch.setattr(httpx, "get", lambda url, timeout: httpx.Response(200, text=next(pages), request=httpx.Request("GET", url)))
    peer: Any = SimpleNamespace(url="http://peer", server=SimpleNamespace(children=lambda recursive: []))
    figures = EngineLoad(peer).figures(streams=4, seconds=10)
    assert figures == {
        "engine CPU, cores": 0,
        "requests in the engine's queue, mean": 0.5,
        "requests outside of the engine, mean": 2,
        "steps/s": 2,
        "tokens per step": 10,
    }


def test_run_that_was_cut_off_leaves_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"date": "2026-01-01", "device": "1 x card", "vllm": "0.32.0", "model": "a model", "flags": ["--a"], "plan": {"streams": [1]}}
    row = {"server": peers.GATEWAY, "row": "1 stream of text", "figures": {"tokens/s": 12.5}, "fault": "it is wrong"}
    lines = [about, row, {"server": peers.RUST, "left_out": "no program"}, row | {"row": "1 stream with a new 2 MP JPEG"}]
    (tmp_path / benchmark.RESULTS).write_text("\n".join(map(json.dumps, lines))[:-10])
    benchmark._show(tmp_path)
    shown = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text() in shown
    assert "1 x card, vLLM 0.32.0" in shown
    assert "12.5!" in shown
    assert "vllm-rs was left out: no program" in shown
    assert "2 MP" not in shown


def test_rust_front_end_gets_the_same_flags_but_one() -> None:
    served = Served(peers.long_checkpoint, ("--a", "--mm-processor-cache-gb", "0.25", "--b"))
    assert list(_without(served.flags, "--mm-processor-cache-gb")) == ["--a", "--b"]
    assert list(_without(("--a",), "--b")) == ["--a"]


def test_checkpoint_has_the_sizes_of_llava_15_7b(tmp_path: Path) -> None:
    for size in ("7b", "small"):
        write_checkpoint(tmp_path / size, size)
        tokenizer = Tokenizer.from_file(str(tmp_path / size / "tokenizer.json"))
        assert (tokenizer.get_vocab_size(with_added_tokens=False), tokenizer.get_vocab_size()) == (VOCABULARY, VOCABULARY + 2)
        config = json.loads((tmp_path / size / "config.json").read_text())
        assert tokenizer.encode("<image>").ids == [1, config["image_token_index"]]
        text = "What is this? Ein Bär, 熊 & 3 more."
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert not any((tmp_path / "7b").glob("*.safetensors"))
