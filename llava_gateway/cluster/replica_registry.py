"""The replicas that this process knows of, by deployment.

The router records them, and `RayEngine` reads them. They have a module of their own because Ray Serve makes a copy of the router's module:
two copies of a module have two registries. Nothing here is shared between processes: each ingress learns of the replicas from Ray Serve.
"""

from collections.abc import Mapping

from llava_gateway.cluster.delta_sender import Address

_replicas: dict[str, Mapping[str, Address]] = {}
"""By the name of the deployment, then by the name of the replica."""


def record_replicas(deployment: str, replicas: Mapping[str, Address]) -> None:
    """Replace the known replicas of a deployment.

    `deployment`: its name in Ray Serve. `replicas`: the address that each replica sends its deltas from, by the replica's name.
    """
    _replicas[deployment] = replicas


def replicas_of(deployment: str) -> Mapping[str, Address]:
    """Return the replicas of a deployment that accept requests. Empty if none is known."""
    return _replicas.get(deployment, {})
