"""The files of deploy/: the Dockerfile, the rendered Helm chart, the alert rules and the dashboard."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from helm_python import Chart
from helpers.server import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "llava-gateway"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def render(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the resources of the chart with these values."""
    with Chart.load(CHART) as chart:
        for name, text in chart.render(values, name="llava", namespace="vision").items():
            if not name.endswith(".txt"):
                yield from filter(None, yaml.safe_load_all(text))


def rendered(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the chart's only resource of a kind."""
    (found,) = (each for each in render(values) if each["kind"] == kind)
    return found


def egress() -> list[dict[str, Any]]:
    """Return the address blocks that the chart's network policy allows."""
    *_, internet = rendered("NetworkPolicy", {})["spec"]["egress"]
    return [each["ipBlock"] for each in internet["to"]]


DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def dockerfile(instruction: str) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile."""
    return re.findall(rf"^{instruction} (.*)$", DOCKERFILE.read_text().replace("\\\n", ""), re.MULTILINE)
