"""Ray's internals: the only file that reads a name that Ray does not document. (`haproxy` has the exception of its own, and needs no Ray.)

Ray Serve documents the classes of its request router (`RequestRouter`, `PendingRequest`, `RunningReplica`) as alpha. `router` uses their
documented methods; the other attributes are read here. All names were read in Ray 2.60.0. tests/unit/cluster/test_ray_compat.py names what
a new Ray has changed.
"""

import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


def deployment_name(router: "RequestRouter") -> str:
    """Return the name of the deployment that a router sends requests to.

    Touches: `RequestRouter._deployment_id`.
    Without it: `ReplicaID.deployment_id` of any replica, which is not known while the deployment has none.
    """
    return str(router._deployment_id.name)


def queue_length(router: "RequestRouter", replica: "RunningReplica") -> int | None:
    """Return the number of requests that a replica has, as this process last heard of it. None: that was too long ago.

    Touches: `RequestRouter.replica_queue_len_cache` and `ReplicaQueueLengthCache.get`.
    Without it: no bound on the load of a replica, as if all loads were unknown.
    """
    length: int | None = router.replica_queue_len_cache.get(replica.replica_id)
    return length


def request_argument(request: "PendingRequest", name: str) -> Any:
    """Return a keyword argument of a request that waits for a replica, or None.

    Touches: `PendingRequest.kwargs`.
    Without it: requests go to the less loaded of two replicas, without affinity.
    """
    return request.kwargs.get(name)


def pause_between_attempts(request: "PendingRequest") -> None:
    """Have Ray Serve wait before it asks the router again for this request. Otherwise it would ask without a pause.

    Touches: `PendingRequest.routing_context` and `RequestRoutingContext.should_backoff`.
    Without it: Ray Serve uses a whole core while all replicas are full.
    """
    request.routing_context.should_backoff = True


def this_replica() -> dict[str, str]:
    """Return the labels of this process for its metrics: its deployment, and its name among the replicas.

    Touches: `ReplicaContext.deployment` and `ReplicaContext.replica_tag`.
    Without it: the name of the machine and the number of the process.
    """
    from ray import serve

    context = serve.get_replica_context()
    return {"deployment": context.deployment, "replica": context.replica_tag}


def process_stderr() -> TextIO | None:
    """Return the standard error stream of this process. Ray Serve replaces `sys.stderr` by a stream that holds lines back.

    Touches: that Ray Serve leaves `sys.__stderr__` alone.
    Without it: the same log lines, later.
    """
    return sys.__stderr__
