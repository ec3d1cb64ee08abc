"""The alert rules and the board: judged by Prometheus' own tool, and every query of the board is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

OPS = Path(__file__).parents[1] / "ops"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


def promtool(*command: str) -> str:
    done = subprocess.run(["promtool", *command], cwd=OPS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> list[str]:
    """What the board asks Prometheus, with a value for each variable."""
    board = json.loads((OPS / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked += [note["expr"] for note in board["annotations"]["list"]]
    return [query.replace("$__rate_interval", "5m").replace("$endpoint", "e") for query in asked]


@needs_promtool
def test_the_rules_are_rules() -> None:
    assert "27 rules found" in promtool("check", "rules", "alerts.yml")


@needs_promtool
def test_each_rule_alarms_when_it_should() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_each_alert_has_a_test_and_says_where() -> None:
    rules = [rule for group in yaml.safe_load((OPS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    cases = [
        case for test in yaml.safe_load((OPS / "alerts_test.yml").read_text())["tests"] for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "warn"), name
        assert "{{ $labels.endpoint }}" in rule["annotations"]["summary"] or name == "CtEndpointGone", name


@needs_promtool
def test_every_query_of_the_board_is_one(tmp_path: Path) -> None:
    rules = [{"record": f"board:query:{at}", "expr": query} for at, query in enumerate(queries())]
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_the_board_is_laid_out_whole() -> None:
    board = json.loads((OPS / "grafana.json").read_text())
    places = [panel["gridPos"] for panel in board["panels"]]
    taken = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(taken) == len(set(taken)), "panels overlap"
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    assert all("$endpoint" in target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    assert not re.search(r"\$(?!endpoint|__rate_interval|\{source\})", json.dumps(board))
