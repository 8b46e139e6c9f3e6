"""vLLM's metrics for Prometheus, recorded in batches.

vLLM records some sixty metrics at each step of the engine, one more for each token, and a dozen for each request. That took a quarter of
the time that a streamed token costs the gateway's process. Importing this file imports vLLM.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import REGISTRY, Histogram, Metric
from prometheus_client.registry import Collector

from llava_gateway.engine.vllm.compat.metrics import (
    IterationStats,
    MultiModalCacheStats,
    PrometheusStatLogger,
    SchedulerStats,
    StepStats,
    observe,
    record_lists,
)

BATCH_STEPS = 64
"""Steps of the engine that are recorded at once."""


class BulkStatLogger(PrometheusStatLogger):  # type: ignore[misc]
    """Adds up the statistics of steps until there is a batch of them, or until the metrics are read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches: defaultdict[int, StepStats] = defaultdict(StepStats)
        """The steps of each engine."""
        self._iteration_tokens: Mapping[int, Histogram] = vars(self)["histogram_iteration_tokens"]
        ignored: Any = defaultdict(_Ignored)
        self.histogram_iteration_tokens = ignored  # vLLM would record the sum of a batch as one step
        _FLUSHER.logger = self

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Accept the statistics of one step, from vLLM's output loop."""
        batch = self._batches[engine_idx]
        if not batch.add(scheduler_stats, iteration_stats, mm_cache_stats) or batch.steps >= BATCH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Record the steps that are held."""
        batches = dict(self._batches)
        self._batches.clear()
        for engine_index, batch in batches.items():
            observe(self._iteration_tokens[engine_index], batch.iteration_tokens)
            record_lists(self, batch.iteration, engine_index)
            super().record(*batch.totals(), engine_index)


class _Ignored:
    """Takes the place of a histogram whose values are recorded elsewhere."""

    def observe(self, value: float) -> None:
        """Do nothing."""


class _Flusher(Collector):
    """Flushes the logger when the metrics are read, and has no metrics of its own.

    The registry asks its collectors in the order of their registration, so this one is asked before vLLM's.
    """

    logger: BulkStatLogger | None = None

    def collect(self) -> Iterator[Metric]:
        if self.logger:
            self.logger.flush()
        return iter(())


_FLUSHER = _Flusher()
REGISTRY.register(_FLUSHER)
