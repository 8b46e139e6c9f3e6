"""Contracts with Ray: each name that the cluster uses is still there, and means the same. A failure says what Ray has changed."""

import importlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from helpers.internals import check_parameters
from ray.serve._private.common import DeploymentID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter

from llava_gateway.cluster import ray_compat
from llava_gateway.cluster.app import Ingress
from llava_gateway.cluster.haproxy import BINARY_PATH
from llava_gateway.cluster.replica import Replica
from llava_gateway.cluster.router import ImageAffinityRouter

pytestmark = pytest.mark.slow

DEPLOYMENT = DeploymentID(name="llava", app_name="app")
REPLICA: Any = SimpleNamespace(replica_id=ReplicaID("r1", DEPLOYMENT))

SIGNATURES = {
    "ray.serve.request_router:RequestRouter.initialize_state": "kwargs",
    "ray.serve.request_router:RequestRouter.choose_replicas": "candidate_replicas pending_request",
    "ray.serve.request_router:RequestRouter.update_replicas": "replicas",
    "ray.serve.request_router:RequestRouter.on_replica_actor_died": "replica_id",
    "ray.serve.config:RequestRouterConfig": "request_router_class request_router_kwargs",
    "ray.serve.handle:DeploymentHandle.broadcast": "method_name",
    "ray.serve.handle:DeploymentBroadcastResponse.results_async": "timeout_s return_exceptions",
    "ray.serve.handle:DeploymentResponse.cancel": "",
    "ray.serve:get_replica_context": "",
    "ray.serve:get_deployment_handle": "deployment_name",
    "ray.serve:ingress": "app",
    "ray.util:get_node_ip_address": "",
}
"""Functions and classes of Ray, and the parameters that are passed to them or that they pass."""


@pytest.mark.parametrize("name", SIGNATURES)
def test_function_has_the_parameters_that_are_used(name: str) -> None:
    check_parameters(name, SIGNATURES[name], "Ray", "cluster")


@pytest.mark.parametrize("name", ["curr_replicas", "replica_queue_len_cache"])
def test_router_has_the_properties_that_are_read(name: str) -> None:
    assert isinstance(getattr(RequestRouter, name, None), property), f"Ray's RequestRouter has no {name} any more. Adapt router.py."


@pytest.mark.parametrize("name", ["replica_id", "replica_metadata"])
def test_replica_has_the_properties_that_are_read(name: str) -> None:
    from ray.serve.request_router import RunningReplica

    assert hasattr(RunningReplica, name), f"Ray's RunningReplica has no {name} any more. Adapt router.py."


def test_router_overrides_methods_that_ray_calls() -> None:
    assert issubclass(ImageAffinityRouter, FIFOMixin)
    own = [name for name, member in vars(ImageAffinityRouter).items() if inspect.isfunction(member) and not name.startswith("_")]
    unknown = [name for name in own if not hasattr(RequestRouter, name)]
    assert not unknown, f"Ray no longer calls {', '.join(unknown)} of a router. Adapt router.py."


def router() -> Any:
    """A router of the deployment `llava`, without replicas and without a running cluster."""
    found = object.__new__(ImageAffinityRouter)
    found._deployment_id = DEPLOYMENT
    found._replica_queue_len_cache = ReplicaQueueLengthCache(get_curr_time_s=lambda: 0.0)
    return found


def test_router_knows_its_deployment() -> None:
    assert "self._deployment_id = deployment_id" in inspect.getsource(RequestRouter.__init__), "Ray's router has no _deployment_id any more"
    assert ray_compat.deployment_name(router()) == "llava"


def test_queue_length_is_the_last_that_was_heard() -> None:
    found = router()
    assert ray_compat.queue_length(found, REPLICA) is None
    found.replica_queue_len_cache.update(REPLICA.replica_id, 7)
    assert ray_compat.queue_length(found, REPLICA) == 7


def test_waiting_request_has_its_arguments_and_its_pause() -> None:
    request = PendingRequest(args=[], kwargs={"affinity": "a"}, metadata=None, future=None)
    assert ray_compat.request_argument(request, "affinity") == "a"
    assert ray_compat.request_argument(request, "other") is None
    assert request.routing_context.should_backoff is False
    ray_compat.pause_between_attempts(request)
    assert request.routing_context.should_backoff is True
    source = inspect.getsource(RequestRouter._choose_replicas_with_backoff)
    assert "routing_context.should_backoff" in source, "Ray no longer reads should_backoff before it pauses"


def test_replica_has_a_name_and_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.context import ReplicaContext

    context = ReplicaContext(REPLICA.replica_id, None, None, None, 1)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    assert ray_compat.this_replica() == {"deployment": "llava", "replica": "r1"}


def test_stderr_is_the_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert ray_compat.process_stderr() is sys.__stderr__


def test_ray_calls_these_methods_by_name() -> None:
    from ray.serve._private.constants import HEALTH_CHECK_METHOD, RECORD_REPLICA_METADATA_METHOD
    from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD

    calls = ((HEALTH_CHECK_METHOD, Replica), (RECORD_REPLICA_METADATA_METHOD, Replica), (SERVE_BUILD_ASGI_APP_METHOD, Ingress))
    for name, owner in calls:
        assert hasattr(owner, name), f"Ray Serve calls {name} now. Rename the method of {owner.__name__}."


ERRORS = (
    *("ray.exceptions:RayError", "ray.exceptions:RayTaskError"),
    *("ray.serve.exceptions:BackPressureError", "ray.serve.exceptions:RayServeException"),
)


@pytest.mark.parametrize("name", ERRORS)
def test_ray_still_raises_these_errors(name: str) -> None:
    module, _, path = name.partition(":")
    assert hasattr(importlib.import_module(module), path), f"Ray has no error {name} any more. Adapt cluster/engine.py."


@pytest.mark.parametrize("name", ["RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"])
def test_ray_is_encrypted_by_these_variables(name: str) -> None:
    folder = Path(ray.__file__).parent / "_private"
    assert any(name in file.read_text() for file in folder.glob("*.py")), f"Ray no longer reads {name}. Adapt delta_sender.py."


def test_ray_starts_the_haproxy_that_the_variable_names() -> None:
    from ray.serve._private import constants, haproxy

    assert hasattr(constants, BINARY_PATH), f"Ray no longer reads {BINARY_PATH}. Adapt haproxy.py."
    assert BINARY_PATH in inspect.getsource(haproxy)


PACKAGE = Path(ray_compat.__file__).parent


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.name)
def test_no_file_imports_internals_of_ray(file: Path) -> None:
    imports = [line.split()[1] for line in file.read_text().splitlines() if line.strip().startswith(("from ray", "import ray"))]
    assert not [name for name in imports if "._" in name]
