"""vLLM's own metrics, and the histograms of prometheus_client behind them. Importing this file imports vLLM.

Read in vLLM 0.32.0 and prometheus_client 0.26.0.
"""

from collections import Counter

from prometheus_client import Histogram
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

__all__ = ["IterationStats", "MultiModalCacheStats", "PrometheusStatLogger", "SchedulerStats", "observe", "record_token_latencies"]


def record_token_latencies(logger: PrometheusStatLogger, stats: IterationStats, engine_index: int) -> None:
    """Record the times between tokens of one step, equal times at once, and remove them from `stats`.

    Streams that were in the previous step, too, have all waited equally long for their tokens. `PrometheusStatLogger.record` would
    enter them one by one, for every token.

    Touches: `IterationStats.inter_token_latencies_iter` and `PrometheusStatLogger.histogram_inter_token_latency`.
    Without it: `PrometheusStatLogger.record` enters the same numbers, and takes more of the event loop's time.
    """
    for seconds, times in Counter(stats.inter_token_latencies_iter).items():
        observe(logger.histogram_inter_token_latency[engine_index], seconds, times)
    stats.inter_token_latencies_iter = []


def observe(histogram: Histogram, value: float, times: int) -> None:
    """Record a value so many times.

    Touches: `Histogram._sum`, `Histogram._buckets` and `Histogram._upper_bounds` of prometheus_client.
    Without it: so many calls of `Histogram.observe`.
    """
    histogram._sum.inc(value * times)
    next(bucket for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True) if value <= bound).inc(times)
