"""The page of all replicas' metrics, where some have none."""

import asyncio
from types import SimpleNamespace
from typing import Any

from prometheus_client import Counter, Metric
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from llava_gateway.cluster.metrics import Page, exposition


def deployment(pages: list[Page | BaseException] | Exception) -> Any:
    """As Ray Serve's handle answers: with each replica's page or error, or with an error if there is no replica."""

    async def results(**_: object) -> list[Page | BaseException]:
        if isinstance(pages, Exception):
            raise pages
        return pages

    return SimpleNamespace(deployment_name="some", broadcast=lambda method: SimpleNamespace(results_async=results))


def counted(number: int) -> list[Metric]:
    counter = Counter("asked", "How often", registry=None)
    counter.inc(number)
    return list(counter.collect())


def test_what_has_no_replica_does_not_take_the_others_away() -> None:
    well = deployment([({"replica": "a"}, counted(3)), RayActorError(), ({"replica": "b"}, counted(4))])
    gone = [deployment(error) for error in (DeploymentUnavailableError("some"), RayActorError(), TimeoutError())]
    page = asyncio.run(exposition([*gone, well])).decode()
    assert [line for line in page.splitlines() if line.startswith("asked_total")] == [
        'asked_total{replica="a"} 3.0',
        'asked_total{replica="b"} 4.0',
    ]
