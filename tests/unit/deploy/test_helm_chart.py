"""The Helm chart, rendered and validated against Kubernetes' schemas."""

import json
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from helm_python import HelmValuesError, lint
from helpers.deployment import CHART, egress, render, rendered
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llava_gateway.cli.serve import ERROR_SEND_TIMEOUT
from llava_gateway.engine.vllm.engine import STOP_TIMEOUT
from llava_gateway.images.url_policy import embedded, is_allowed
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow

FIXED = {"model", "host", "port", "keys_file", "api_keys"}
"""Settings that have other values in the chart, that the chart sets itself, or that belong into a Secret."""
OWN = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
"""API versions of other projects, for which Kubernetes has no schema."""
VARIANTS: list[dict[str, Any]] = [
    {},
    {"settings": {"auth": "none"}, "gpus": 0, "networkPolicy": {"from": [], "dns": []}, "podDisruptionBudget": {"enabled": False}},
    {"model": {"name": "/models/llava", "claim": "models", "hubToken": {"secret": "hub"}}, "cache": {"claim": "cache"}},
    {"autoscaling": {"enabled": True}, "podMonitor": {"enabled": True}, "engineFlags": ["--max-model-len", "4096"]},
    {"networkPolicy": {"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "redis"}}}], "ports": [{"port": 6379}]}]}},
    {"imagePullSecrets": [{"name": "pull"}], "env": [{"name": "LLAVA_RATE_LIMIT_STORAGE", "value": "redis://redis"}], "replicas": 3},
    {"nodeSelector": {"gpu": "l4"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "affinity": {"podAntiAffinity": {}}},
]


@pytest.mark.parametrize("values", VARIANTS, ids=lambda values: ",".join(values) or "defaults")
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_chart_renders_valid_kubernetes_resources(version: str, values: dict[str, Any]) -> None:
    assert {message["severity"] for message in lint(CHART, values, strict=True)["messages"]} <= {1}  # information: the chart has no icon
    kinds = set()
    for resource in render(values):
        kinds.add(resource["kind"])
        if resource["apiVersion"] not in OWN:
            kubernetes_validate.validate(resource, version, strict=True)
    assert {"Deployment", "Service", "NetworkPolicy"} <= kinds


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"settings": {"max_quued": 1}}, "max_quued"),
        ({"settings": {"api_keys": "secret"}}, "api_keys"),
        ({"gpu": 1}, "gpu"),
        ({"replicas": "many"}, "/replicas"),
        ({"settings": {"shutdown_timeout": "30s"}}, "/settings/shutdown_timeout"),
    ],
)
def test_chart_names_a_wrong_value(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmValuesError, match=named):
        list(render(wrong))


def test_chart_knows_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["settings"]["propertyNames"]["enum"]) == set(Settings.model_fields) - FIXED


def test_settings_reach_the_gateway_through_the_chart() -> None:
    given = {"max_running_tokens": 2_000_000, "keep_alive": 0.5, "apis": "openai,chat_ui", "cors_origins": "https://chat.example.com"}
    (container,) = rendered("Deployment", {"settings": given})["spec"]["template"]["spec"]["containers"]
    with pytest.MonkeyPatch.context() as patch:
        for variable in container["env"]:
            patch.setenv(variable["name"], variable["value"])
        got = Settings()
    assert (got.max_running_tokens, got.keep_alive, got.apis) == (2_000_000, 0.5, ("openai", "chat_ui"))
    assert (got.cors_origins, got.on_engine_death) == (("https://chat.example.com",), "exit")
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert Path(got.keys_file) == Path(mount["mountPath"]) / "keys.json"


@pytest.mark.parametrize("timeout", [0, 30, 120])
def test_pod_gets_enough_time_to_stop(timeout: int) -> None:
    spec = rendered("Deployment", {"settings": {"shutdown_timeout": timeout}})["spec"]["template"]["spec"]
    delay = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > delay + timeout + ERROR_SEND_TIMEOUT + STOP_TIMEOUT


def test_pod_is_confined() -> None:
    spec = rendered("Deployment", {})["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"/cache", "/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": 1}


def test_pod_gets_enough_time_to_load_its_model() -> None:
    (container,) = rendered("Deployment", {"startupSeconds": 1201})["spec"]["template"]["spec"]["containers"]
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 1201
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
    assert paths == ["/ready", "/health", "/ready"]


BLOCKS = [(ip_network(block["cidr"]), [ip_network(network) for network in block["except"]]) for block in egress()]


@settings(max_examples=2000, deadline=None)
@given(st.ip_addresses() | st.ip_addresses(network="2000::/3"))
@example(IPv6Address("fec0::1"))
@example(IPv4Address("169.254.169.254"))
def test_network_policy_allows_the_addresses_that_the_gateway_fetches_from(address: IPv4Address | IPv6Address) -> None:
    let_out = any(address in network and not any(address in kept for kept in inside) for network, inside in BLOCKS)
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or embedded(address)):
        return  # a network policy cannot see the IPv4 address inside
    assert let_out == is_allowed(address)
