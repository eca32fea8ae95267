"""Alert rules and dashboard: promtool reads and tests them, and they name metrics that the pool has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY, ROOT, run
from tests.documents import table

ALERTS = DEPLOY / "prometheus" / "alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "ccp.json").read_text("utf-8"))
DOCUMENTED = set(re.findall(r"^\| `(ccp_\w+)`", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.MULTILINE))


def expressions() -> list[str]:
    """The queries of the dashboard, with its variables filled in."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [target["expr"].replace("$instance", ".*") for target in targets]


def test_alert_rules_are_valid() -> None:
    run("promtool", "check", "rules", ALERTS)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    run("promtool", "test", "rules", DEPLOY / "prometheus" / "alerts.test.yml")


def test_alerts_are_all_tested_and_say_what_to_do() -> None:
    tested = (DEPLOY / "prometheus" / "alerts.test.yml").read_text("utf-8")
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in tested
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_alerts_all_have_a_row_in_the_runbook_with_their_severity() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    listed = {}
    for names, severities, where in table(text)[1:]:
        found, of_each = re.findall(r"`(\w+)`", names), severities.split("; ")
        listed |= zip(found, of_each * len(found) if len(of_each) == 1 else of_each, strict=False)
        assert "](" in where or "`ccp " in where, names
    assert listed == {rule["alert"]: rule["labels"]["severity"] for rule in RULES}


def test_prometheus_configuration_is_valid() -> None:
    run("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml")


def test_dashboard_queries_are_valid(tmp_path: Path) -> None:
    rules: Any = [{"record": f"panel:query{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", file)


def test_alerts_and_dashboard_name_metrics_that_the_pool_has() -> None:
    assert DOCUMENTED
    for text in [*expressions(), *(rule["expr"] for rule in RULES)]:
        for name in re.findall(r"\bccp_\w+", text):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            assert name in DOCUMENTED or base in DOCUMENTED, name


def test_dashboard_panels_have_a_title_a_unit_and_a_description() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
    assert len(places) == len(DASHBOARD["panels"]), "two panels stand on one place"
