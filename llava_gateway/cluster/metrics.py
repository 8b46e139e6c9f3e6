"""The metrics of the whole cluster on one page.

Prometheus reaches only one ingress replica at a time. That replica collects the metrics of all replicas, its own included.
"""

import asyncio
import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import REGISTRY, Collector
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from llava_gateway.cluster.ray_compat import this_replica

log = logging.getLogger(__name__)

TIMEOUT = 5
"""Seconds that the replicas of a deployment have to answer. If one does not, the page has none of the deployment's metrics."""
GATEWAY_PREFIX = "llava_"
"""How the names of the gateway's own metrics begin."""

MetricsPage = tuple[dict[str, str], list[Metric]]
"""The labels of a replica, and its metrics."""


def metrics_page(*, gateway: bool) -> MetricsPage:
    """Return the metrics of this process. `gateway`: whether to include the gateway's own, which are all 0 in an engine's replica."""
    return this_replica(), [metric for metric in REGISTRY.collect() if gateway or not metric.name.startswith(GATEWAY_PREFIX)]


async def exposition(deployments: Iterable[DeploymentHandle[Any]]) -> bytes:
    """Return the metrics of all replicas of these deployments in the format of Prometheus.

    Each replica has a method `metrics` that returns its MetricsPage.
    """
    pages = await asyncio.gather(*map(_pages, deployments))
    registry = CollectorRegistry()
    registry.register(_Pages(list(chain.from_iterable(pages))))
    return await asyncio.to_thread(generate_latest, registry)


async def _pages(deployment: DeploymentHandle[Any]) -> list[MetricsPage]:
    try:
        pages = await deployment.broadcast("metrics").results_async(timeout_s=TIMEOUT, return_exceptions=True)
    except TimeoutError:
        log.warning("%s: a replica does not report its metrics", deployment.deployment_name)
        return []
    except (RayError, RayServeException):  # the deployment has no replica
        return []
    return [page for page in pages if not isinstance(page, BaseException)]


class _Pages(Collector):
    """Joins the pages: one metric of each name, with the samples of all replicas."""

    def __init__(self, pages: list[MetricsPage]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for labels, metrics in self._pages:
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.samples.append(sample._replace(labels=sample.labels | labels))
        return families.values()
