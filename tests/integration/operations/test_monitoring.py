"""The alert rules and the dashboard, on a real Prometheus that scrapes the real gateway; and the health check of the Docker image."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from helpers import programs
from helpers.deployment import ALERTS, CONFIG, QUERIES, RULES, dockerfile, rendered
from helpers.origin import Origin
from helpers.requests import body, image_part
from helpers.server import HTTP, Server, free_port
from helpers.waiting import wait_for

from llava_gateway.demo.images import data_uri, draw_noisy, encode

METRIC = re.compile(r"\b(?:llava_|vllm:|process_)\w+")
CHAT = "/v1/chat/completions"
GRID = ("red", "blue", "green", "orange")
WITHOUT_DATA = "llava_key_tokens_total"
"""A metric without data, since the server of the tests has no keys."""
POD = {"namespace": "vision", "pod": "llava-llava-gateway-1"}
"""The labels of a pod in Kubernetes."""


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer. Raises httpx.HTTPError, such as for the 503 of a start."""
        answer = HTTP.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=60).raise_for_status().json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        return [float(each["value"][1]) for each in self.get("query", query=expression)["result"]]


@contextmanager
def prometheus(folder: Path, gateway: str) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of deploy/, but with other addresses, keys and times."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
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
        process.wait(60)


def answers(condition: Callable[[], Any]) -> bool:
    """Return whether Prometheus has started and the condition holds."""
    try:
        return bool(condition())
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def watched(server: Server, origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, after scrapes before and after traffic of all kinds."""
    traffic(server, origin)
    with prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://")) as running:
        scrapes = f'count_over_time(up{{pod="{POD["pod"]}"}}[1h])'
        wait_for(lambda: answers(lambda: running.query(scrapes) > [2]), 120, lambda: "the first scrapes")
        traffic(server, origin)
        (before,) = running.query(scrapes)
        wait_for(lambda: answers(lambda: running.query(scrapes) > [before + 2]), 120, lambda: "scrapes after the traffic")
        yield running


def traffic(server: Server, origin: Origin) -> None:
    """Send requests with a text, a new image (streamed, twice), an image by URL, a missing image, and a wrong field."""
    new = image_part(data_uri(encode(draw_noisy(GRID, random.Random()))))
    for request, status in (
        (body("Hello", max_tokens=4), 200),
        (body(new, "Describe this image.", stream=True, max_tokens=8), 200),
        (body(new, "Describe this image.", stream=True, max_tokens=8), 200),
        (body(image_part(f"{origin.url}/picture"), "Describe this image.", max_tokens=4), 200),
        (body(image_part(f"{origin.url}/not-there"), "Describe this image."), 400),
        (body("Hello", temperature=9), 400),
    ):
        answer = HTTP.post(server.url + CHAT, json=request, timeout=60)
        assert answer.status_code == status, answer.text


def test_every_queried_metric_is_exposed(server: Server) -> None:
    exposed = set(re.findall(r"^# TYPE (\S+)", HTTP.get(f"{server.url}/metrics", timeout=60).text, re.MULTILINE))
    chart = [trigger["metadata"]["query"] for trigger in rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]]
    for query in [*QUERIES, *chart, *(rule["expr"] for rule in ALERTS)]:
        names = set(METRIC.findall(query))
        assert names | set(re.findall(r"\bup\b", query)), query
        assert {name.removesuffix("_bucket") for name in names} <= exposed, query


@pytest.mark.slow
def test_every_dashboard_query_has_data(watched: Prometheus) -> None:
    empty = []
    for query in QUERIES:
        found = watched.query(query.replace("$instance", ".*").replace("$__rate_interval", "1m"))
        if not found or any(value != value for value in found if "sum by (stage, le)" not in query):  # NaN: no observation
            empty.append(query)
    assert all(WITHOUT_DATA in query for query in empty), empty


def test_prometheus_scrapes_the_gateway_and_evaluates_every_rule(watched: Prometheus) -> None:

    def scraped() -> bool:
        (target,) = watched.get("targets")["activeTargets"]
        return bool((target["health"], target["lastError"], target["labels"]["job"]) == ("up", "", "llava-gateway"))

    wait_for(scraped, 120)

    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for group in watched.get("rules")["groups"] for rule in group["rules"])

    wait_for(evaluated, 120)
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS)
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"} == set()


def test_keda_query_returns_a_number(watched: Prometheus) -> None:
    (trigger,) = rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]
    wait_for(lambda: watched.query(trigger["metadata"]["query"]) == [0.0])


def test_image_health_check_tells_a_running_server_from_none(server: Server) -> None:
    (line,) = dockerfile("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    for port, healthy in ((str(server.address[1]), True), (str(free_port()), False)):
        ended = subprocess.run([sys.executable, *command[1:]], env=os.environ | {"LLAVA_PORT": port}, capture_output=True, timeout=60)
        assert (ended.returncode == 0) == healthy, ended.stderr
