"""vLLM's numbers for Prometheus, entered in bulk. vLLM enters some sixty metrics at each step of the engine and one more for each token,
which took a quarter of what a streamed token costs this process."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Histogram, Metric
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

BATCH = 32
"""Steps."""

Step = tuple[SchedulerStats | None, IterationStats | None, MultiModalCacheStats | None, int]


class BulkStatLogger(PrometheusStatLogger):  # type: ignore[misc]
    """Enters the steps when they are a batch, and whenever somebody reads the metrics: a loop over several is cheaper than each by itself,
    for which the code has to come back into the processor's caches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._steps: list[Step] = []
        super().__init__(*args, **kwargs)
        _READER.logger = self

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        self._steps.append((scheduler_stats, iteration_stats, mm_cache_stats, engine_idx))
        if len(self._steps) >= BATCH:
            self.enter()

    def enter(self) -> None:
        steps, self._steps = self._steps, []
        for scheduler_stats, iteration_stats, mm_cache_stats, engine_idx in steps:
            if iteration_stats:  # streams that were in the last step, too, have all waited as long for their tokens
                for seconds, times in Counter(iteration_stats.inter_token_latencies_iter).items():
                    _observe(self.histogram_inter_token_latency[engine_idx], seconds, times)
                iteration_stats.inter_token_latencies_iter = []
            super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)


def _observe(histogram: Histogram, value: float, times: int) -> None:
    """As `histogram.observe(value)`, so many times."""
    histogram._sum.inc(value * times)
    next(bucket for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True) if value <= bound).inc(times)


class _Reader(Collector):
    """Has no metrics of its own. The registry asks in the order of registration, so this is asked before vLLM's."""

    logger: BulkStatLogger | None = None

    def collect(self) -> Iterator[Metric]:
        if self.logger:
            self.logger.enter()
        return iter(())


_READER = _Reader()
REGISTRY.register(_READER)
