"""The alert rules and the dashboard, on a real Prometheus that scrapes the real gateway; and the health check of the Docker image."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from helpers import programs
from helpers.deployment import dockerfile, rendered
from helpers.monitoring import ALERTS, CONFIG, QUERIES, RULES
from helpers.origin import Origin
from helpers.requests import body, image_part
from helpers.server import Server, free_port

from llava_gateway.demo.images import data_uri, draw_noisy, encode

METRIC = re.compile(r"\b(?:llava_|vllm:|process_)\w+")
CHAT = "/v1/chat/completions"
GRID = ("red", "blue", "green", "orange")
WITHOUT_DATA = "llava_key_tokens_total"
"""The server of the tests has no keys."""
POD = {"namespace": "vision", "pod": "llava-llava-gateway-1"}
"""As Kubernetes labels what it scrapes."""


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        return [float(each["value"][1]) for each in self.get("query", query=expression)["result"]]


@contextmanager
def prometheus(folder: Path, gateway: str) -> Iterator[Prometheus]:
    """With deploy/'s own configuration, but for the address, the key, and the times."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES.parent / name) for name in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    scraped["authorization"]["credentials_file"] = str(folder / "key")
    scraped["static_configs"] = [{"targets": [gateway], "labels": POD}]
    (folder / "key").write_text("a-key")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [programs.find("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(20)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not within 30 s: {what}")


@pytest.fixture(scope="module")
def watched(server: Server, origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after traffic of all kinds, which it has seen come."""
    traffic(server, origin)
    with prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://")) as running:
        scrapes = f'count_over_time(up{{pod="{POD["pod"]}"}}[1m])'
        wait_for(lambda: running.query(scrapes) > [2], "the first scrapes")
        traffic(server, origin)
        (before,) = running.query(scrapes)
        wait_for(lambda: running.query(scrapes) > [before + 2], "scrapes after the traffic")
        yield running


def traffic(server: Server, origin: Origin) -> None:
    """A text, a picture that nobody has seen (streamed, and once more), one by URL, one that is not there, a wrong request."""
    new = image_part(data_uri(encode(draw_noisy(GRID, random.Random()))))
    for request, status in (
        (body("Hello", max_tokens=4), 200),
        (body(new, "Describe this image.", stream=True, max_tokens=8), 200),
        (body(new, "Describe this image.", stream=True, max_tokens=8), 200),
        (body(image_part(f"{origin.url}/picture"), "Describe this image.", max_tokens=4), 200),
        (body(image_part(f"{origin.url}/not-there"), "Describe this image."), 400),
        (body("Hello", temperature=9), 400),
    ):
        answer = httpx.post(server.url + CHAT, json=request, timeout=60)
        assert answer.status_code == status, answer.text


def test_every_queried_metric_is_exposed(server: Server) -> None:
    exposed = set(re.findall(r"^# TYPE (\S+)", httpx.get(f"{server.url}/metrics", timeout=60).text, re.MULTILINE))
    chart = [trigger["metadata"]["query"] for trigger in rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]]
    for query in [*QUERIES, *chart, *(rule["expr"] for rule in ALERTS)]:
        names = set(METRIC.findall(query))
        assert names | set(re.findall(r"\bup\b", query)), query
        assert {name.removesuffix("_bucket") for name in names} <= exposed, query


def test_every_dashboard_query_has_data(watched: Prometheus) -> None:
    empty = []
    for query in QUERIES:
        found = watched.query(query.replace("$instance", ".*").replace("$__rate_interval", "1m"))
        if not found or any(value != value for value in found if "sum by (stage, le)" not in query):  # NaN: nothing was observed
            empty.append(query)
    assert all(WITHOUT_DATA in query for query in empty), empty


def test_prometheus_scrapes_the_gateway_and_evaluates_every_rule(watched: Prometheus) -> None:
    (target,) = watched.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"], target["labels"]["job"]) == ("up", "", "llava-gateway")

    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for group in watched.get("rules")["groups"] for rule in group["rules"])

    wait_for(evaluated, "the first evaluation of the rules")
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS)
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"} == set()


def test_keda_query_returns_a_number(watched: Prometheus) -> None:
    (trigger,) = rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]
    assert watched.query(trigger["metadata"]["query"]) == [0.0]


def test_image_health_check_tells_a_running_server_from_none(server: Server) -> None:
    (line,) = dockerfile("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    for port, healthy in ((server.url.rpartition(":")[2], True), (str(free_port()), False)):
        ended = subprocess.run([sys.executable, *command[1:]], env=os.environ | {"LLAVA_PORT": port}, capture_output=True)
        assert (ended.returncode == 0) == healthy, ended.stderr
