"""vLLM's metrics for Prometheus, recorded in batches.

vLLM records some sixty metrics at each step of the engine, and one more for each token. That took a quarter of the time that a streamed
token costs the gateway's process. Importing this file imports vLLM.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector

from llava_gateway.engine.vllm.compat.metrics import (
    IterationStats,
    MultiModalCacheStats,
    PrometheusStatLogger,
    SchedulerStats,
    record_token_latencies,
)

BATCH_STEPS = 32
"""Steps of the engine that are recorded at once."""

Step = tuple[SchedulerStats | None, IterationStats | None, MultiModalCacheStats | None, int]
"""The arguments of one call of `record`."""


class BulkStatLogger(PrometheusStatLogger):  # type: ignore[misc]
    """Holds the statistics of steps until there is a batch of them, or until somebody reads the metrics.

    A loop over a batch costs less than a call for each step, because the code stays in the processor's caches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._steps: list[Step] = []
        super().__init__(*args, **kwargs)
        _FLUSHER.logger = self

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Accept the statistics of one step, from vLLM's output loop."""
        self._steps.append((scheduler_stats, iteration_stats, mm_cache_stats, engine_idx))
        if len(self._steps) >= BATCH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Record the steps that are held."""
        steps, self._steps = self._steps, []
        for scheduler_stats, iteration_stats, mm_cache_stats, engine_index in steps:
            if iteration_stats:
                record_token_latencies(self, iteration_stats, engine_index)
            super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_index)


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
