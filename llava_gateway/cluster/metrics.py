"""One page of metrics for the whole cluster, whichever ingress replica Prometheus comes to: each has its own and the engines' asked for."""

import asyncio
import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import REGISTRY, Collector
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

TIMEOUT = 5
"""Seconds after which the page is made without the replicas of a deployment of which one has not answered."""
OURS = "llava_"

Page = tuple[dict[str, str], list[Metric]]
"""A replica's labels, and what it has counted."""


def page(*, ours: bool) -> Page:
    """Of this process. `ours`: with the gateway's own metrics, which are nought in an engine's replica."""
    replica = serve.get_replica_context()
    labels = {"deployment": replica.deployment, "replica": replica.replica_id.unique_id}
    return labels, [metric for metric in REGISTRY.collect() if ours or not metric.name.startswith(OURS)]


async def exposition(deployments: Iterable[DeploymentHandle[Any]]) -> bytes:
    """What Prometheus reads. Each replica of these has a method `metrics` that returns its page."""
    pages = await asyncio.gather(*map(_pages, deployments))
    registry = CollectorRegistry()
    registry.register(_Pages(list(chain.from_iterable(pages))))
    return await asyncio.to_thread(generate_latest, registry)


async def _pages(deployment: DeploymentHandle[Any]) -> list[Page]:
    try:
        pages = await deployment.broadcast("metrics").results_async(timeout_s=TIMEOUT, return_exceptions=True)
    except TimeoutError:
        log.warning("%s: a replica does not say what it has counted", deployment.deployment_name)
        return []
    except (RayError, RayServeException):  # it has no replica
        return []
    return [page for page in pages if not isinstance(page, BaseException)]


class _Pages(Collector):
    def __init__(self, pages: list[Page]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for labels, metrics in self._pages:
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.samples.append(sample._replace(labels=sample.labels | labels))
        return families.values()
