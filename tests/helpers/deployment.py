"""The files of deploy/: the Dockerfile, and the Helm chart as it is rendered."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from helm_python import Chart
from helpers.server import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "llava-gateway"


def render(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        for name, text in chart.render(values, name="llava", namespace="vision").items():
            if not name.endswith(".txt"):
                yield from filter(None, yaml.safe_load_all(text))


def rendered(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    (found,) = (each for each in render(values) if each["kind"] == kind)
    return found


def egress() -> list[dict[str, Any]]:
    *_, internet = rendered("NetworkPolicy", {})["spec"]["egress"]
    return [each["ipBlock"] for each in internet["to"]]


DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def dockerfile(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.*)$", DOCKERFILE.read_text().replace("\\\n", ""), re.MULTILINE)
