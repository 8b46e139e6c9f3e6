"""The files for Ray Serve and KubeRay, checked by Ray's schemas and by the gateway's own."""

import importlib
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from helpers.deployment import egress
from helpers.server import ROOT
from ray import serve
from ray.serve.schema import ServeDeploySchema

from llava_gateway.cluster.app import ClusterConfig, _deployment_names, build
from llava_gateway.settings import SettingsError

pytestmark = pytest.mark.slow

RAY = ROOT / "deploy" / "ray"
KUBERNETES = "1.37"


def application(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((RAY / name).read_text())
    config = next(each if "applications" in each else yaml.safe_load(each["spec"]["serveConfigV2"]) for each in documents)
    (found,) = ServeDeploySchema.model_validate(config).applications
    return {"import_path": found.import_path, "args": found.args}


@pytest.mark.parametrize("name", ["demo.yaml", "rayservice.yaml"])
def test_ray_serve_accepts_the_application(name: str) -> None:
    given = application(name)
    module, _, builder = given["import_path"].partition(":")
    built = getattr(importlib.import_module(module), builder)(ClusterConfig.model_validate(given["args"]))
    assert isinstance(built, serve.Application)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {}}, "keys_file"),
        ({"settings": {"auth": "none", "port": 80}}, "port"),
        ({"settings": {"auth": "none", "feedback_dir": "/votes"}}, "feedback_dir"),
        ({"settings": {"auth": "none", "max_runing": 1}}, "max_runing"),
        ({"settings": {"auth": "none", "send_timeout": 5}}, "send_timeout"),
        ({"settings": {"api_keys": "sk-1"}}, "LLAVA_API_KEYS"),
        ({"settings": {"auth": "none", "rate_limit_storage": "redis://:secret@redis"}}, "LLAVA_RATE_LIMIT_STORAGE"),
        ({"models": []}, "models"),
        ({"models": [{"model": "llava-demo", "replicas": 2}]}, "replicas"),
        ({"models": [{"model": "llava-demo", "deployment": {"num_replica": 2}}]}, "num_replica"),
        ({"models": [{"model": "llava-demo", "deployment": {"request_router_config": {}}}]}, "request_router_config"),
        ({"models": [{"model": "llava-demo", "deployment": {"autoscaling_config": {"min_replicas": 0}}}]}, "min_replicas"),
        ({"models": [{"model": "llava-demo", "model_alias": "demo=klingon"}]}, "klingon"),
        ({"models": [{"model": "llava-demo"}, {"model": "llava-demo"}]}, "name llava-demo"),
        ({"models": [{"model": "llava-demo", "model_alias": "a"}, {"model": "llava-demo", "served_model_name": "a"}]}, "name a"),
        ({"ingress": {"num_replica": 2}}, "num_replica"),
    ],
)
def test_wrong_value_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError, SettingsError), match=named):
        build(ClusterConfig.model_validate(application("demo.yaml")["args"] | change))


def test_forbidden_setting_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_FEEDBACK_DIR", "/votes")
    with pytest.raises(SettingsError, match="feedback_dir"):
        build(ClusterConfig.model_validate(application("demo.yaml")["args"]))


def test_deployment_names_are_unique() -> None:
    names = ("a-1", "a", "ingress", "\u6a21\u578b", "/", "a-1-1")
    models = [{"model": "llava-demo", "served_model_name": name} for name in names]
    config = ClusterConfig.model_validate(application("demo.yaml")["args"] | {"models": models})
    assert list(_deployment_names(config)) == ["a-1", "a-1-1", "ingress-2", "model-3", "model-4", "a-1-1-5"]


def test_rayservice_pods_are_valid() -> None:
    """Kubernetes has no schema for KubeRay's resource, so its pods are validated."""
    service, policy = yaml.safe_load_all((RAY / "rayservice.yaml").read_text())
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_cluster_may_reach_only_public_addresses() -> None:
    _, policy = yaml.safe_load_all((RAY / "rayservice.yaml").read_text())
    assert [each["ipBlock"] for each in policy["spec"]["egress"][-1]["to"]] == egress()
