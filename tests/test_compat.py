"""What compat.py adapts in vLLM is still there, and is adapted as it says."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llava_gateway.chat import Sampling
from llava_gateway.engine.vllm import compat
from llava_gateway.engine.vllm.sampling import sampling_params
from llava_gateway.errors import InvalidRequest

RELIED_ON = {
    "v1/worker/gpu_model_runner.py": {
        "gen.set_offset(gen.get_offset() - 4)": "vLLM no longer rewinds the generators of discarded rows; is cpu_worker.py still needed?",
        "self.input_batch.generators.get(int(i))": "vLLM rewinds generators that it finds elsewhere than in input_batch.generators",
        "self.discard_request_mask.np[:num_reqs]": "vLLM knows the rows to discard by another name than discard_request_mask",
    },
    "v1/worker/gpu_input_batch.py": {
        "self.generators: dict[int, torch.Generator] = {}": "input_batch.generators is no longer a dict by row",
        "            generators=self.generators,": "vLLM samples with another dict than input_batch.generators",
        "def num_reqs(self) -> int:": "input_batch has no num_reqs",
    },
    "v1/worker/gpu_worker.py": {
        "return self.model_runner.sample_tokens(grammar_output)": "vLLM's worker no longer samples in sample_tokens",
    },
    "v1/worker/cpu_worker.py": {
        "class CPUWorker(Worker):": "vLLM's worker for CPUs has another name or base",
        "if self.use_v2_model_runner:": "vLLM chooses its model runner in another way",
    },
    "platforms/cpu.py": {'if parallel_config.worker_cls == "auto":': "vLLM overrides the worker class that it was given"},
}


@pytest.mark.parametrize("file", RELIED_ON)
def test_vllm_is_as_compat_read_it(file: str) -> None:
    vllm = find_spec("vllm")
    assert vllm
    assert vllm.origin
    source = (Path(vllm.origin).parent / file).read_text()
    changed = [why for text, why in RELIED_ON[file].items() if text not in source]
    assert not changed, f"vLLM's {file} has changed since {compat.READ_IN}x: {'; '.join(changed)}. Read it again and adapt compat.py."


def runner(*discarded: bool, rows: int | None = None) -> Any:
    batch = SimpleNamespace(generators={}, num_reqs=len(discarded) if rows is None else rows)
    return SimpleNamespace(input_batch=batch, discard_request_mask=SimpleNamespace(np=np.array(discarded)))


def test_a_discarded_draw_does_not_advance_a_seed() -> None:
    """Of four rows the third has no seed, and the mask has an old entry behind them."""
    model_runner = runner(True, False, True, True, True, rows=4)
    generators = model_runner.input_batch.generators
    generators |= {0: "a", 1: "b", 3: "d", 4: "not of this batch"}
    before = dict(generators)
    with compat.without_discarded_rows(model_runner):
        assert generators == {1: "b", 4: "not of this batch"}
    assert generators == before
    assert model_runner.input_batch.generators is generators


def test_generators_come_back_after_an_error() -> None:
    model_runner = runner(True)
    model_runner.input_batch.generators[0] = "a"
    with pytest.raises(ZeroDivisionError), compat.without_discarded_rows(model_runner):
        raise ZeroDivisionError
    assert model_runner.input_batch.generators == {0: "a"}


@pytest.mark.parametrize(
    ("version", "given", "chosen"),
    [
        ("0.32.0", "auto", compat.CPU_WORKER),
        ("0.32.1+cpu", "auto", compat.CPU_WORKER),
        ("0.33.0", "auto", "auto"),
        ("0.32.0", "a.B", "a.B"),
    ],
)
def test_the_worker_is_ours_only_in_a_vllm_that_was_read(monkeypatch: pytest.MonkeyPatch, version: str, given: str, chosen: str) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    arguments: Any = SimpleNamespace(worker_cls=given)
    compat.choose_cpu_worker(arguments)
    assert arguments.worker_cls == chosen


def config(worker: str, *, v2: bool = False) -> Any:
    return SimpleNamespace(use_v2_model_runner=v2, parallel_config=SimpleNamespace(worker_cls=worker))


def test_seeds_work_with_our_worker_or_none_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: True))
    assert compat.seeds_work(config(compat.CPU_WORKER))
    assert compat.seeds_work(config("auto", v2=True))
    assert not compat.seeds_work(config("vllm.v1.worker.cpu_worker.CPUWorker"))
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert compat.seeds_work(config("vllm.v1.worker.gpu_worker.Worker"))


def test_a_seed_that_could_end_the_engine_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        sampling_params(Sampling(max_tokens=1, seed=7), stream=False, seeds_work=False)
    assert refused.value.param == "seed"
    for harmless in (Sampling(max_tokens=1), Sampling(max_tokens=1, seed=7, temperature=0)):
        assert sampling_params(harmless, stream=False, seeds_work=False).max_tokens == 1
    assert sampling_params(Sampling(max_tokens=1, seed=7), stream=False, seeds_work=True).seed == 7
