"""Ray Serve's choice of a replica, by the images of the request. It runs in the process of whoever holds the handle: the ingress."""

import random
from collections.abc import Callable, Sequence

from blake3 import blake3
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llava_gateway.cluster.delta_sender import address_of
from llava_gateway.cluster.replica_registry import record_replicas

FACTOR = 1.25
SPARE = 4
"""A replica has too much to do when it has more requests than `FACTOR` times what all have on average, and `SPARE`."""


def ranked(key: str, replicas: Sequence[str]) -> list[str]:
    """All replicas, the one that this key belongs to first. One that comes or goes takes no key along but its own (rendezvous hashing,
    Thaler and Ravishankar 1998)."""
    return sorted(replicas, key=lambda replica: blake3(f"{key}/{replica}".encode()).digest(), reverse=True)


def within_bounds(replicas: Sequence[str], load: Callable[[str], int | None]) -> list[str]:
    """Those that have not too much to do, in the order given: never none of them (consistent hashing with bounded loads, Mirrokni et al.
    2018). `load`: requests that a replica has; None if that is not known, which is taken for the average."""
    loads = [load(replica) for replica in replicas]
    replicas_of = [each for each in loads if each is not None]
    bound = FACTOR * sum(replicas_of) / len(replicas_of) + SPARE if replicas_of else 0.0
    return [replica for replica, its in zip(replicas, loads, strict=True) if its is None or its <= bound]


class ImageAffinityRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Requests name what they belong to as `affinity`; those that name nothing go to the less loaded of two."""

    def initialize_state(self, *, affinity: bool) -> None:
        """Called by Ray Serve. `affinity`: whether it matters what requests name."""
        self._affinity = affinity

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One try: the replicas to ask, in turn, until one has room. Called again, after a pause, if none had."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        key = pending_request.kwargs.get("affinity") if pending_request and self._affinity else None
        if not key:
            return [[replica] for replica in self._less_loaded_first(random.sample(candidate_replicas, min(2, len(candidate_replicas))))]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = ranked(key, list(by_name))
        best = within_bounds(order, lambda name: self._load(by_name[name]))
        return [[by_name[name]] for name in (*best, *(name for name in order if name not in best))]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._record()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._record()

    def _record(self) -> None:
        replicas = self.curr_replicas.values()
        addresses = {replica.replica_id.unique_id: address_of(replica.replica_metadata) for replica in replicas}
        record_replicas(self._deployment_id.name, {name: address for name, address in addresses.items() if address})

    def _less_loaded_first(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """As they come if the load of one is not known: Ray Serve, asked for the better of both, would never try that one."""
        loads = {replica.replica_id: load for replica in replicas if (load := self._load(replica)) is not None}
        return sorted(replicas, key=lambda replica: loads[replica.replica_id]) if len(loads) == len(replicas) else replicas

    def _load(self, replica: RunningReplica) -> int | None:
        """As this process last heard of it; None if that was long ago."""
        load: int | None = self.replica_queue_len_cache.get(replica.replica_id)
        return load
