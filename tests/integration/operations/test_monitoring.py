"""The alert rules and the dashboard, on a real Prometheus that scrapes the real gateway."""

import json
import random
import re
import subprocess
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
from helpers.charts import rendered
from helpers.origin import Origin
from helpers.requests import body, image_part
from helpers.server import ROOT, Server, free_port

from llava_gateway.demo.images import data_uri, draw_noisy, encode

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
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


def test_the_configuration_and_the_rules() -> None:
    programs.run("promtool", "check", "config", "--syntax-only", CONFIG)
    programs.run("promtool", "check", "rules", RULES)
    programs.run("promtool", "test", "rules", RULES_TEST, cwd=RULES_TEST.parent)


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    fires, silent = set[str](), 0
    for test in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for check in test.get("promql_expr_test", []):
            silent += not check["exp_samples"]
            fires |= {re.findall('"(.*)"', sample["labels"])[0] for sample in check["exp_samples"]}
    assert fires == {rule["alert"] for rule in ALERTS}
    assert silent >= len(ALERTS)


def test_every_alert_has_a_runbook() -> None:
    headings = set(re.findall(r"^### (Llava\w+)$", RELIABILITY, re.MULTILINE))
    assert headings == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/reliability.md#{rule['alert'].lower()}"


def test_alerts_name_codes_that_there_are() -> None:
    package = "".join(path.read_text() for path in (ROOT / "llava_gateway").rglob("*.py"))
    for query in [*QUERIES, *(rule["expr"] for rule in ALERTS)]:
        for codes in re.findall(r'reason=~?"([^"]+)"', query):
            for code in codes.split("|"):
                assert re.search(rf'\bcode ?= ?"{code}"', package), code


def test_metrics_that_are_asked_for_are_there(server: Server) -> None:
    exposed = set(re.findall(r"^# TYPE (\S+)", httpx.get(f"{server.url}/metrics").text, re.MULTILINE))
    chart = [trigger["metadata"]["query"] for trigger in rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]]
    for query in [*QUERIES, *chart, *(rule["expr"] for rule in ALERTS)]:
        names = set(METRIC.findall(query))
        assert names | set(re.findall(r"\bup\b", query)), query
        assert {name.removesuffix("_bucket") for name in names} <= exposed, query


def test_the_dashboard_is_well_formed() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    provided = yaml.safe_load((ROOT / "deploy" / "grafana" / "datasource.yaml").read_text())
    assert provided["datasources"][0]["type"] == "prometheus"
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}


def test_every_query_of_the_dashboard_has_data(watched: Prometheus) -> None:
    empty = []
    for query in QUERIES:
        found = watched.query(query.replace("$instance", ".*").replace("$__rate_interval", "1m"))
        if not found or any(value != value for value in found if "sum by (stage, le)" not in query):  # NaN: nothing was observed
            empty.append(query)
    assert all(WITHOUT_DATA in query for query in empty), empty


def test_prometheus_reads_the_gateway_and_evaluates_every_rule(watched: Prometheus) -> None:
    (target,) = watched.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"], target["labels"]["job"]) == ("up", "", "llava-gateway")

    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for group in watched.get("rules")["groups"] for rule in group["rules"])

    wait_for(evaluated, "the first evaluation of the rules")
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS)
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"} == set()


def test_keda_gets_a_number(watched: Prometheus) -> None:
    (trigger,) = rendered("ScaledObject", {"autoscaling": {"enabled": True}})["spec"]["triggers"]
    assert watched.query(trigger["metadata"]["query"]) == [0.0]
