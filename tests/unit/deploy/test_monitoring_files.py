"""The alert rules, their tests and runbooks, and the dashboard's layout."""

import re

import pytest
import yaml
from helpers import programs
from helpers.deployment import ALERTS, CONFIG, DASHBOARD, PANELS, QUERIES, RULES
from helpers.server import ROOT

RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yml"
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


@pytest.mark.slow
def test_prometheus_configuration_and_rules_are_valid() -> None:
    programs.run("promtool", "check", "config", "--syntax-only", CONFIG)
    programs.run("promtool", "check", "rules", RULES)
    programs.run("promtool", "test", "rules", RULES_TEST, cwd=RULES_TEST.parent)


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
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


def test_alerts_name_existing_error_codes() -> None:
    package = "".join(path.read_text() for path in (ROOT / "llava_gateway").rglob("*.py"))
    for query in [*QUERIES, *(rule["expr"] for rule in ALERTS)]:
        for codes in re.findall(r'reason=~?"([^"]+)"', query):
            for code in codes.split("|"):
                assert re.search(rf'\bcode ?= ?"{code}"', package), code


def test_dashboard_is_well_formed() -> None:
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
