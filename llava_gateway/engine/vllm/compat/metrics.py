"""vLLM's own metrics, and the histograms of prometheus_client behind them. Importing this file imports vLLM.

Read in vLLM 0.32.0 and prometheus_client 0.26.0.
"""

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

from prometheus_client import Histogram
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import (
    FinishedRequestStats,
    IterationStats,
    MultiModalCacheStats,
    PrefixCacheStats,
    PromptTokenStats,
    SchedulerStats,
)

__all__ = ["IterationStats", "MultiModalCacheStats", "PrometheusStatLogger", "SchedulerStats", "StepStats", "observe", "record_lists"]

PREFIX_CACHE = [field.name for field in dataclasses.fields(PrefixCacheStats) if field.default == 0 and field.name != "reset"]
PROMPT_TOKENS = [field.name for field in dataclasses.fields(PromptTokenStats)]
ITERATION = [name for name, value in vars(IterationStats()).items() if isinstance(value, int)]
LISTS = [name for name, value in vars(IterationStats()).items() if isinstance(value, list)]
"""The names of the numbers in vLLM's statistics of one step, and of the lists."""
SINGLE = (
    *("connector_prefix_cache_stats", "kv_cache_eviction_events", "spec_decoding_stats", "kv_connector_stats"),
    *("ec_connector_stats", "cudagraph_stats", "perf_stats"),
)
"""The fields of `SchedulerStats` that are recorded step by step. After a step with one of them, no other step may be added."""


class StepStats:
    """The statistics of several steps of the engine, added up.

    Touches: the fields of `IterationStats`, `PromptTokenStats`, `SchedulerStats`, `PrefixCacheStats` and `MultiModalCacheStats`.
    Without it: `PrometheusStatLogger.record` for every step, which takes more of the event loop's time.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.iteration = IterationStats()
        self.iteration_tokens: Counter[float] = Counter()
        """How many steps had so many tokens: read of prompts, and generated."""
        self._scheduler: SchedulerStats | None = None
        self._prefix_cache = PrefixCacheStats()
        self._images = MultiModalCacheStats()

    def add(self, scheduler: SchedulerStats | None, iteration: IterationStats | None, images: MultiModalCacheStats | None) -> bool:
        """Add a step. Return whether another step may be added."""
        self.steps += 1
        if iteration is not None:
            self.iteration_tokens[iteration.prompt_token_stats.computed + iteration.num_generation_tokens] += 1
            _add(self.iteration, iteration, ITERATION)
            _add(self.iteration, iteration, LISTS)
            _add(self.iteration.prompt_token_stats, iteration.prompt_token_stats, PROMPT_TOKENS)
        if images is not None:
            _add(self._images, images, ("queries", "hits"))
        if scheduler is None:
            return True
        _add(self._prefix_cache, scheduler.prefix_cache_stats, PREFIX_CACHE)
        self._scheduler = scheduler
        return not any(getattr(scheduler, name) for name in SINGLE)

    def totals(self) -> tuple[SchedulerStats | None, IterationStats | None, MultiModalCacheStats]:
        """Return the arguments of one call of `PrometheusStatLogger.record` for all steps."""
        scheduler = self._scheduler and dataclasses.replace(self._scheduler, prefix_cache_stats=self._prefix_cache)
        return scheduler, self.iteration if self.iteration_tokens else None, self._images


def _add(total: object, step: object, names: Iterable[str]) -> None:
    """Add the numbers or lists with these names to `total`."""
    for name in names:
        if value := getattr(step, name):
            setattr(total, name, getattr(total, name) + value)


FINISHED: Mapping[str, Callable[[FinishedRequestStats], float]] = {
    "histogram_e2e_time_request": attrgetter("e2e_latency"),
    "histogram_queue_time_request": attrgetter("queued_time"),
    "histogram_prefill_time_request": attrgetter("prefill_time"),
    "histogram_inference_time_request": attrgetter("inference_time"),
    "histogram_decode_time_request": attrgetter("decode_time"),
    "histogram_request_num_preemptions": attrgetter("num_preemptions"),
    "histogram_prefill_kv_computed_request": lambda request: request.num_prompt_tokens - max(request.num_cached_tokens, 0),
    "histogram_num_prompt_tokens_request": attrgetter("num_prompt_tokens"),
    "histogram_num_generation_tokens_request": attrgetter("num_generation_tokens"),
    "histogram_request_time_per_output_token": attrgetter("mean_time_per_output_token"),
}
"""The histograms of requests that have ended, and the value that each gets of a request."""


def record_lists(logger: PrometheusStatLogger, stats: IterationStats, engine_index: int) -> None:
    """Record the values of every token and every request in `stats`, and remove them from it.

    `PrometheusStatLogger.record` would record them one by one. Streams that were in the previous step, too, have all waited equally long
    for their tokens.

    Touches: the lists of `IterationStats`, the fields of `FinishedRequestStats`, `PrometheusStatLogger.counter_request_success` and the
    histograms of `PrometheusStatLogger` in `FINISHED` and below.
    Without it: `PrometheusStatLogger.record` enters the same numbers, and takes more of the event loop's time.
    """
    ended = stats.finished_requests
    for reason, times in Counter(request.finish_reason for request in ended).items():
        logger.counter_request_success[reason][engine_index].inc(times)
    values: dict[str, Iterable[float]] = {name: map(value, ended) for name, value in FINISHED.items()} if ended else {}
    values["histogram_max_tokens_request"] = (request.max_tokens_param for request in ended if request.max_tokens_param)
    values["histogram_time_to_first_token"] = stats.time_to_first_tokens_iter
    values["histogram_inter_token_latency"] = stats.inter_token_latencies_iter
    for name, numbers in values.items():
        observe(getattr(logger, name)[engine_index], Counter(numbers))
    stats.finished_requests, stats.time_to_first_tokens_iter, stats.inter_token_latencies_iter = [], [], []


def observe(histogram: Histogram, values: Mapping[float, int]) -> None:
    """Record values. `values`: how many times each is recorded.

    Touches: `Histogram._sum`, `Histogram._buckets` and `Histogram._upper_bounds` of prometheus_client.
    Without it: so many calls of `Histogram.observe`.
    """
    if not values:
        return
    histogram._sum.inc(sum(value * times for value, times in values.items()))
    buckets: Counter[int] = Counter()
    for value, times in values.items():
        buckets[bisect_left(histogram._upper_bounds, value)] += times
    for bucket, times in buckets.items():
        histogram._buckets[bucket].inc(times)
