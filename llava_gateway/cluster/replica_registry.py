"""What this process knows of replicas. Apart from the router, since Ray Serve makes a copy of that one's module."""

from collections.abc import Mapping

from llava_gateway.cluster.delta_sender import Address

_replicas: dict[str, Mapping[str, Address]] = {}


def record_replicas(deployment: str, replicas: Mapping[str, Address]) -> None:
    _replicas[deployment] = replicas


def replicas_of(deployment: str) -> Mapping[str, Address]:
    """The replicas of this deployment that take requests, by name, and where their deltas come from."""
    return _replicas.get(deployment, {})
