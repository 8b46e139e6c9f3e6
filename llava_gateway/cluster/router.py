"""Ray Serve's request router for the engines: a request goes to the replica that its first image belongs to.

The router runs in the process of each ingress replica.
"""

import random
from collections.abc import Callable, Sequence

from blake3 import blake3
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llava_gateway.cluster.delta_sender import address_of
from llava_gateway.cluster.ray_compat import deployment_name, pause_between_attempts, queue_length, request_argument
from llava_gateway.cluster.replica_registry import record_replicas

FACTOR = 1.25
SPARE = 4
"""A replica is overloaded if it has more requests than `FACTOR` times the average of all replicas, plus `SPARE`."""


def ranked(key: str, replicas: Sequence[str]) -> list[str]:
    """Return all replicas in the order of preference for a key.

    A replica that is added or removed changes the first place only of keys that it wins or had won (rendezvous hashing, Thaler and
    Ravishankar 1998).
    """
    return sorted(replicas, key=lambda replica: blake3(f"{key}/{replica}".encode()).digest(), reverse=True)


def within_bounds(replicas: Sequence[str], load: Callable[[str], int | None]) -> list[str]:
    """Return the replicas that are not overloaded, in the given order. There is always at least one.

    This is consistent hashing with bounded loads (Mirrokni et al. 2018).
    `load`: returns the number of requests that a replica has. None: unknown, which counts as the average.
    """
    loads = [load(replica) for replica in replicas]
    known = [each for each in loads if each is not None]
    bound = FACTOR * sum(known) / len(known) + SPARE if known else 0.0
    return [replica for replica, each in zip(replicas, loads, strict=True) if each is None or each <= bound]


class ImageAffinityRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Chooses a replica by the argument `affinity` of the request. A request without one goes to the less loaded of two replicas."""

    def initialize_state(self, *, affinity: bool) -> None:
        """Called by Ray Serve with the router's options. `affinity`: False to ignore the argument of the requests."""
        self._affinity = affinity

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas to ask, one after the other, until one has a free slot.

        Ray Serve calls this method again, after a pause, if none has.
        """
        if pending_request is not None:
            pause_between_attempts(pending_request)
        key = request_argument(pending_request, "affinity") if pending_request and self._affinity else None
        if not key:
            return [[replica] for replica in self._less_loaded_first(random.sample(candidate_replicas, min(2, len(candidate_replicas))))]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = ranked(key, list(by_name))
        best = within_bounds(order, lambda name: queue_length(self, by_name[name]))
        return [[by_name[name]] for name in (*best, *(name for name in order if name not in best))]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray Serve with all replicas that accept requests, whenever they change."""
        super().update_replicas(replicas)
        self._record()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Called by Ray Serve when a request has found a replica dead."""
        super().on_replica_actor_died(replica_id)
        self._record()

    def _record(self) -> None:
        replicas = self.curr_replicas.values()
        addresses = {replica.replica_id.unique_id: address_of(replica.replica_metadata) for replica in replicas}
        record_replicas(deployment_name(self), {name: address for name, address in addresses.items() if address})

    def _less_loaded_first(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """Return the replicas by load. If the load of one is unknown, the order stays.

        Ray Serve's own choice of the better replica would never try one of unknown load.
        """
        loads = {replica.replica_id: load for replica in replicas if (load := queue_length(self, replica)) is not None}
        return sorted(replicas, key=lambda replica: loads[replica.replica_id]) if len(loads) == len(replicas) else replicas
