"""Metrics that are recorded in bulk have the same values as metrics that are recorded one by one."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, MultiModalCacheStats, PrefixCacheStats, SchedulerStats

from llava_gateway.engine.vllm.compat.metrics import FINISHED, ITERATION, LISTS, PREFIX_CACHE, SINGLE, StepStats, observe, record_lists

pytestmark = pytest.mark.slow


def samples(histogram: Any) -> dict[tuple[str, str | None], float]:
    """Return the values of a histogram or a counter."""
    (metric,) = histogram.collect()
    return {
        (sample.name.partition("_")[2], sample.labels.get("le")): sample.value
        for sample in metric.samples
        if not sample.name.endswith("created")
    }


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 7.0])))
def test_histogram_observes_in_bulk_as_one_by_one(values: list[float]) -> None:
    registry = CollectorRegistry()
    bulk, single = (Histogram(name, "text", registry=registry, buckets=(0.125, 1.0)) for name in ("bulk", "single"))
    missing = [name for name in ("_sum", "_buckets", "_upper_bounds") if not hasattr(bulk, name)]
    assert not missing, f"prometheus_client's Histogram has no {', '.join(missing)} any more. Adapt compat/metrics.py."
    observe(bulk, {value: values.count(value) for value in values})
    for value in values:
        single.observe(value)
    assert samples(bulk) == samples(single), "prometheus_client's Histogram keeps its numbers elsewhere. Adapt compat/metrics.py."


def test_numbers_and_lists_of_a_step_are_all_added_up() -> None:
    """A number that vLLM adds to its statistics must not be lost."""
    assert {*ITERATION, *LISTS, "iteration_timestamp", "prompt_token_stats"} == set(vars(IterationStats()))
    assert {"requests", "queries", "hits", "preempted_requests", "preempted_queries", "preempted_hits"} == set(PREFIX_CACHE)
    assert set(SINGLE) <= set(vars(SchedulerStats()))


def step(tokens: int, prompt: int = 0) -> IterationStats:
    stats = IterationStats()
    stats.num_generation_tokens = tokens
    stats.prompt_token_stats.computed = stats.prompt_token_stats.total = prompt
    stats.inter_token_latencies_iter = [0.1] * tokens
    return stats


def test_steps_are_added_up() -> None:
    steps = StepStats()
    first = SchedulerStats(num_running_reqs=3, prefix_cache_stats=PrefixCacheStats(queries=10, hits=4))
    untouched = copy.deepcopy(first)
    last = SchedulerStats(num_running_reqs=1, kv_cache_usage=0.5, prefix_cache_stats=PrefixCacheStats(queries=5, hits=1))
    assert steps.add(first, step(3, prompt=20), MultiModalCacheStats(queries=2, hits=1))
    assert steps.add(last, step(1), MultiModalCacheStats(queries=1, hits=1))
    assert steps.add(None, step(1), None)
    scheduler, iteration, images = steps.totals()
    assert scheduler
    assert iteration
    assert (scheduler.num_running_reqs, scheduler.kv_cache_usage) == (1, 0.5)  # the last step's
    assert (scheduler.prefix_cache_stats.queries, scheduler.prefix_cache_stats.hits) == (15, 5)
    assert (iteration.num_generation_tokens, iteration.prompt_token_stats.total) == (5, 20)
    assert iteration.inter_token_latencies_iter == [0.1] * 5
    assert (images.queries, images.hits) == (3, 2)
    assert steps.iteration_tokens == {23: 1, 1: 2}
    assert first == untouched, "other loggers of vLLM read these objects, too"


def test_steps_without_outputs_count_no_step() -> None:
    steps = StepStats()
    assert steps.add(SchedulerStats(num_waiting_reqs=2), None, None)
    scheduler, iteration, _ = steps.totals()
    assert scheduler
    assert (scheduler.num_waiting_reqs, iteration) == (2, None)


@pytest.mark.parametrize("name", SINGLE)
def test_no_step_is_added_to_one_with_its_own_statistics(name: str) -> None:
    steps = StepStats()
    scheduler = SchedulerStats(**{name: SimpleNamespace(a=1)})
    assert not steps.add(scheduler, step(1), None)
    totals, _, _ = steps.totals()
    assert getattr(totals, name) is getattr(scheduler, name)


def request(reason: FinishReason, seconds: float, max_tokens: int | None) -> FinishedRequestStats:
    return FinishedRequestStats(
        finish_reason=reason, request_id="r", e2e_latency=seconds, num_prompt_tokens=30, num_generation_tokens=4, num_preemptions=1,
        max_tokens_param=max_tokens, queued_time=0.1, prefill_time=0.2, inference_time=0.3, decode_time=0.4,
        mean_time_per_output_token=0.05, num_cached_tokens=8,
    )  # fmt: skip


def test_lists_are_recorded_once_as_vllm_records_them() -> None:
    """vLLM's own `record` runs on the same lists with other histograms."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    names = [*FINISHED, "histogram_max_tokens_request", "histogram_time_to_first_token", "histogram_inter_token_latency"]
    loggers: list[Any] = []
    for _ in range(2):
        logger = PrometheusStatLogger.__new__(PrometheusStatLogger)
        for name in names:
            setattr(logger, name, {0: Histogram("h", "text", registry=None, buckets=(0.1, 0.5, 10.0))})
        logger.counter_request_success = {reason: {0: Counter("c", "text", registry=None)} for reason in FinishReason}
        loggers.append(logger)
    stats = IterationStats()
    stats.finished_requests = [
        request(FinishReason.STOP, 0.4, None),
        request(FinishReason.LENGTH, 2.0, 4),
        request(FinishReason.STOP, 2.0, 9),
    ]
    stats.time_to_first_tokens_iter, stats.inter_token_latencies_iter = [0.2, 0.7], [0.05, 0.05, 0.6]
    bulk, single = loggers
    _record_one_by_one(single, copy.deepcopy(stats))
    record_lists(bulk, stats, 0)
    for name in names:
        assert samples(getattr(bulk, name)[0]) == samples(getattr(single, name)[0]), name
    for reason in FinishReason:
        assert samples(bulk.counter_request_success[reason][0]) == samples(single.counter_request_success[reason][0])
    assert not (stats.finished_requests)
    assert not (stats.time_to_first_tokens_iter)
    assert not (stats.inter_token_latencies_iter)


def _record_one_by_one(logger: Any, stats: IterationStats) -> None:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    ignored = SimpleNamespace(inc=lambda *_: None, observe=lambda *_: None)
    logger.vllm_config = SimpleNamespace(watermark_config=None)
    for name in ("counter_num_preempted_reqs", "counter_prompt_tokens", "counter_prompt_tokens_cached", "counter_generation_tokens"):
        setattr(logger, name, {0: ignored})
    logger.counter_prompt_tokens_by_source = {key: {0: ignored} for key in ("local_compute", "local_cache_hit", "external_kv_transfer")}
    logger.histogram_iteration_tokens = {0: ignored}
    PrometheusStatLogger.record(logger, None, stats)
