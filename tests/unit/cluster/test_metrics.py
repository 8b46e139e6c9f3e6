"""The page of all replicas' metrics, if some replicas do not answer."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Counter, Metric
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from llava_gateway.cluster.metrics import MetricsPage, exposition

pytestmark = pytest.mark.slow


def deployment(pages: list[MetricsPage | BaseException] | Exception) -> Any:
    """Return a handle like Ray Serve's, which has a page or an error for each replica, or an error if there is no replica."""

    async def results(**_: object) -> list[MetricsPage | BaseException]:
        if isinstance(pages, Exception):
            raise pages
        return pages

    return SimpleNamespace(deployment_name="some", broadcast=lambda method: SimpleNamespace(results_async=results))


def samples(number: int) -> list[Metric]:
    counter = Counter("asked", "How often", registry=None)
    counter.inc(number)
    return list(counter.collect())


def test_deployment_without_replicas_does_not_hide_the_others() -> None:
    well = deployment([({"replica": "a"}, samples(3)), RayActorError(), ({"replica": "b"}, samples(4))])
    gone = [deployment(error) for error in (DeploymentUnavailableError("some"), RayActorError(), TimeoutError())]
    page = asyncio.run(exposition([*gone, well])).decode()
    assert [line for line in page.splitlines() if line.startswith("asked_total")] == [
        'asked_total{replica="a"} 3.0',
        'asked_total{replica="b"} 4.0',
    ]
