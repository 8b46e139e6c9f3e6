"""Seeds on a CPU, log probabilities in vLLM's own container, and parameters that vLLM has checked."""

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.sampling_params
from vllm.logprobs import FlatLogprobs, append_logprobs_for_next_position, create_sample_logprobs
from vllm.v1.sample.sampler import Sampler

from llava_gateway.engine.vllm.compat import named_tokens, seeds
from llava_gateway.engine.vllm.outputs import token_logprobs
from llava_gateway.engine.vllm.sampling import MAX_CHECKED, CheckedParams, sampling_params
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import MAX_LOGPROB_TOKEN_IDS, SamplingParams, StructuredOutput, TokenLogprob

pytestmark = pytest.mark.slow


def runner(*discarded: bool, rows: int | None = None) -> Any:
    batch = SimpleNamespace(generators={}, num_reqs=len(discarded) if rows is None else rows)
    return SimpleNamespace(input_batch=batch, discard_request_mask=SimpleNamespace(np=np.array(discarded)))


def test_discarded_draw_does_not_advance_a_generator() -> None:
    """The third of four rows has no seed, and the mask has an old entry after them."""
    model_runner = runner(True, False, True, True, True, rows=4)
    generators = model_runner.input_batch.generators
    generators |= {0: "a", 1: "b", 3: "d", 4: "not of this batch"}
    before = dict(generators)
    with seeds.without_discarded_rows(model_runner):
        assert generators == {1: "b", 4: "not of this batch"}
    assert generators == before
    assert model_runner.input_batch.generators is generators


def test_generators_come_back_after_an_error() -> None:
    model_runner = runner(True)
    model_runner.input_batch.generators[0] = "a"
    with pytest.raises(ZeroDivisionError), seeds.without_discarded_rows(model_runner):
        raise ZeroDivisionError
    assert model_runner.input_batch.generators == {0: "a"}


@pytest.mark.parametrize(
    ("version", "given", "chosen"),
    [
        ("0.32.0", "auto", seeds.CPU_WORKER),
        ("0.32.1+cpu", "auto", seeds.CPU_WORKER),
        ("0.33.0", "auto", "auto"),
        ("0.32.0", "a.B", "a.B"),
    ],
)
def test_worker_is_ours_only_in_a_known_version_of_vllm(monkeypatch: pytest.MonkeyPatch, version: str, given: str, chosen: str) -> None:
    monkeypatch.setattr("vllm.__version__", version)
    arguments: Any = SimpleNamespace(worker_cls=given)
    seeds.choose_cpu_worker(arguments)
    assert arguments.worker_cls == chosen


def test_vllm_finds_the_worker_by_its_name() -> None:
    """A wrong name would end the engine's start on every CPU."""
    vllm = pytest.importorskip("vllm.v1.worker.cpu_worker")
    module, _, name = seeds.CPU_WORKER.rpartition(".")
    worker = getattr(importlib.import_module(module), name)
    assert issubclass(worker, vllm.CPUWorker)
    assert worker.sample_tokens is not vllm.CPUWorker.sample_tokens


def config(worker: str, *, v2: bool = False) -> Any:
    return SimpleNamespace(use_v2_model_runner=v2, parallel_config=SimpleNamespace(worker_cls=worker))


def test_seeds_work_with_our_worker_and_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: True))
    assert seeds.seeds_work(config(seeds.CPU_WORKER))
    assert seeds.seeds_work(config("auto", v2=True))
    assert not seeds.seeds_work(config("vllm.v1.worker.cpu_worker.CPUWorker"))
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert seeds.seeds_work(config("vllm.v1.worker.gpu_worker.Worker"))


def test_seed_that_could_end_the_engine_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        sampling_params(SamplingParams(max_tokens=1, seed=7), stream=False, seeds_work=False)
    assert refused.value.param == "seed"
    for harmless in (SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, seed=7, temperature=0)):
        assert sampling_params(harmless, stream=False, seeds_work=False).max_tokens == 1
    assert sampling_params(SamplingParams(max_tokens=1, seed=7), stream=False, seeds_work=True).seed == 7


@pytest.mark.parametrize(("wanted", "top"), [(0, ()), (2, ((b"red", -1.0), (b"blue", -9999.0)))])
def test_log_probabilities_are_read_from_vllms_container(wanted: int, top: tuple[tuple[bytes, float], ...]) -> None:
    """The drawn token is the third in rank. One object for each log probability would keep the garbage collector busy."""
    params = sampling_params(SamplingParams(max_tokens=1, logprobs=wanted), stream=True, seeds_work=True)
    container = create_sample_logprobs(params.flat_logprobs)
    assert isinstance(container, FlatLogprobs)
    for drawn in (7, 9):
        append_logprobs_for_next_position(container, [drawn, 1, 2], [-3.0, -1.0, float("-inf")], [None] * 3, 3, wanted)
    tokenizer: Any = SimpleNamespace(token_bytes={1: b"red", 2: b"blue", 7: b"seven", 9: b"nine"}.__getitem__)

    def found(reason: str | None, *, include_stop_token: bool = False) -> tuple[TokenLogprob, ...]:
        choice: Any = SimpleNamespace(token_ids=[7, 9], logprobs=container[-2:], finish_reason=reason, stop_reason=None)
        return token_logprobs(choice, SamplingParams(logprobs=wanted, include_stop_token=include_stop_token), tokenizer)

    ids = (1, 2)[:wanted]
    seven, nine = TokenLogprob(b"seven", -3.0, top, 7, ids), TokenLogprob(b"nine", -3.0, top, 9, ids)
    assert found(None) == (seven, nine)
    assert found("stop") == (seven,)
    assert found("stop", include_stop_token=True) == (seven, nine)


def test_named_tokens_replace_the_likeliest_ones() -> None:
    """vLLM bounds `logprobs` by 20, and named tokens by 128."""
    ids = tuple(range(MAX_LOGPROB_TOKEN_IDS))
    sampling = SamplingParams(max_tokens=1, logprobs=len(ids), logprob_token_ids=ids)
    params = sampling_params(sampling, stream=True, seeds_work=True)
    assert (params.logprobs, params.num_logprobs, params.logprob_token_ids) == (None, len(ids), list(ids))
    assert MAX_LOGPROB_TOKEN_IDS == vllm.sampling_params.MAX_LOGPROB_TOKEN_IDS
    assert sampling_params(SamplingParams(logprobs=2), stream=True, seeds_work=True).logprob_token_ids is None


def test_rows_without_named_tokens_keep_their_likeliest_ones() -> None:
    """vLLM's older runner would give padding to the other requests of the batch."""
    sampler = Sampler()
    named_tokens.keep_likeliest_tokens(sampler)
    logprobs = torch.log_softmax(torch.arange(3 * 640, dtype=torch.float32).reshape(3, 640) % 97, dim=-1)
    with torch.compiler.set_stance("force_eager"):  # as in the engine on a CPU; a compiler takes long, and fails in a path with a space
        found = sampler.gather_specific_token_logprobs(logprobs, {1: [5, 3]}, torch.tensor([7, 8, 9]))
    assert found.logprob_token_ids[1, :3].tolist() == [8, 5, 3]
    assert found.logprobs[1, :3].tolist() == logprobs[1, [8, 5, 3]].tolist()
    for row, drawn in ((0, 7), (2, 9)):
        assert found.logprob_token_ids[row, 0] == drawn
        assert found.logprobs[row, 1:].tolist() == logprobs[row].topk(20).values.tolist()


def test_named_tokens_work_with_our_worker_and_the_newer_runner() -> None:
    assert named_tokens.named_tokens_work(config(seeds.CPU_WORKER))
    assert named_tokens.named_tokens_work(config("auto", v2=True))
    assert not named_tokens.named_tokens_work(config("vllm.v1.worker.cpu_worker.CPUWorker"))


def test_parameters_are_kept_for_equal_requests_alone() -> None:
    checked, params = CheckedParams(), sampling_params(SamplingParams(max_tokens=7), True, seeds_work=True)
    checked.add(SamplingParams(max_tokens=7), True, params)
    assert checked.get(SamplingParams(max_tokens=7), True) is params
    assert checked.get(SamplingParams(max_tokens=7), False) is None
    for field in dataclasses.fields(SamplingParams):
        if field.name != "max_tokens":
            other = OTHERS[field.name]
            assert checked.get(SamplingParams(**{"max_tokens": 7, field.name: other}), True) is None, field.name


OTHERS: dict[str, Any] = {
    "lower_max_tokens_to_fit": True, "min_tokens": 1, "n": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 1,
    "presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.1, "logit_bias": {1: 2.0}, "allowed_token_ids": (1,),
    "bad_words": ("a",), "stop": ("a",), "stop_token_ids": (1,), "include_stop_str_in_output": True, "ignore_eos": True,
    "skip_special_tokens": False, "spaces_between_special_tokens": False, "structured_output": StructuredOutput("regex", "a"),
    "logprobs": 1, "logprob_token_ids": (1,), "unset": frozenset(("top_p",)), "prompt_logprobs": 1, "include_stop_token": True,
    "return_token_ids": True,
}  # fmt: skip
"""Another value of each field."""


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=None),
        SamplingParams(max_tokens=1, n=2),
        SamplingParams(max_tokens=1, logit_bias={1: 1.0}),
        SamplingParams(max_tokens=1, stop=("a" * 300,)),
        SamplingParams(max_tokens=1, bad_words=("a",)),
    ],
)
def test_parameters_that_fit_one_prompt_or_may_be_large_are_not_kept(sampling: SamplingParams) -> None:
    checked, params = CheckedParams(), sampling_params(sampling, True, seeds_work=True)
    checked.add(sampling, True, params)
    assert checked.get(sampling, True) is None


def test_the_oldest_parameters_are_forgotten() -> None:
    checked, params = CheckedParams(), sampling_params(SamplingParams(max_tokens=1), True, seeds_work=True)
    for tokens in range(1, MAX_CHECKED + 2):
        checked.add(SamplingParams(max_tokens=tokens), True, params)
        checked.get(SamplingParams(max_tokens=1), True)  # the first stays in use
    assert [checked.get(SamplingParams(max_tokens=tokens), True) is params for tokens in (1, 2, 3)] == [True, False, True]
