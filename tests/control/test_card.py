"""The model card: everything a reader needs, from the journal alone, as JSON, as Markdown and as a plot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import ct
from ct.control import card, drawing
from ct.control.act import Actor
from ct.errors import NotFound
from ct.registry import routes, versions
from tests.control import orders


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Actor:
    gate = ct.Gate(
        beats=ct.auc(by=0.0, margin=0.02), floors=[ct.auc(0.60)], guards=[ct.slices()], challengers=[ct.LightGBM(rounds=20)]
    )
    made = orders.opened(tmp_path_factory.mktemp("shop"), orders.line(gate=gate))
    orders.registered(made, live=True)
    orders.registered(made, (2.1, -1.0, -3.0))
    return made


def test_a_card_tells_use_data_metrics_verdict_and_lineage(act: Actor) -> None:
    found = json.loads(card.to_json(card.card(act.place, "v2")))
    assert found["model"]["owner"] == "shop | desk"
    assert found["model"]["intended_use"].startswith("Warns the desk")
    assert found["model"]["predicts"] == "the probability that days_late is above 0, known at delivered_at"
    assert (found["model"]["alias"], found["verdict"]["decision"]) == ("registered", "fail")
    table = found["data"]["tables"]["orders"]
    assert (table["rows"], len(table["shards"])) == (9_000, 3)
    assert found["data"]["rows_judged"] == found["metrics"]["gains"][0]["rows"]
    metrics = found["metrics"]
    assert metrics["champion"]["auroc"] > metrics["candidate"]["auroc"]
    assert metrics["baseline"]["log_loss"] > 0
    assert set(metrics["by_slice"]["country"]) == {"AT", "DE", "FR"}
    assert metrics["challengers"][0]["name"] == "LightGBM"
    assert {"auroc against the champion by -0.02", "auroc at least 0.6"} <= {f["part"] for f in found["verdict"]["findings"]}
    assert found["features"] == [{"column": "amount", "kind": "numeric"}, {"column": "country", "kind": "category"}]
    assert found["requests"]["columns"]["amount"] == "number"
    version = versions.get(act.journal, "late-orders", "v2")
    assert found["lineage"]["manifest"] == version.manifest
    assert found["training"]["contract"] == {"threads": 1}
    assert found["reproduce"] == "ct reproduce v2"
    assert any("window" in text or "figures are of" in text for text in found["limits"])


def test_markdown_holds_the_same_numbers_and_what_stands_in_data_stays_in_its_cell(act: Actor) -> None:
    found = card.card(act.place, "v2")
    page = drawing.markdown(found, "v2.svg")
    assert page.startswith("# Model card: late-orders v2\n")
    assert "![Calibration](v2.svg)" in page
    for head in ("Verdict", "Metrics", "Data", "Features", "Requests", "Training", "Lineage", "Limits"):
        assert f"\n## {head}\n" in page
    assert f"| auroc | {found['metrics']['candidate']['auroc']:.4f} | {found['metrics']['champion']['auroc']:.4f} |" in page
    assert "shop \\| desk" in page
    assert "&lt;before>" in page
    assert "LightGBM" in page
    width: dict[int, int] = {}
    for block in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
        for row in block.splitlines():
            cells = len(re.findall(r"(?<!\\)\|", row))
            assert width.setdefault(id(block), cells) == cells, row


def test_the_plot_is_an_image_that_is_the_same_each_time(act: Actor) -> None:
    found = card.card(act.place, "v1")
    first = drawing.plot(found)
    assert ET.fromstring(first).tag.endswith("svg")
    assert drawing.plot(found) == first
    assert first != drawing.plot(card.card(act.place, "v2"))


def test_a_card_is_drawn_for_every_objective() -> None:
    for kind in ("binary", "classes", "number", "quantiles"):
        metrics = {"curve": [{"said": 0.1, "true": 0.2, "rows": 5.0}, {"said": 0.9, "true": 0.7, "rows": 9.0}]}
        assert drawing.plot({"metrics": metrics, "model": {"objective": kind, "version": "v1"}})
    assert drawing.plot({"metrics": {"curve": []}, "model": {"objective": "binary", "version": "v1"}}) == b""


def test_an_override_and_a_changed_pipeline_are_told(act: Actor) -> None:
    versions.overrule(act.journal, "late-orders", "v2", reason="seen by hand")
    assert card.card(act.place, "v2")["verdict"]["overruled_by"] == "ann: seen by hand"
    assert not card.card(act.place, "v1")["model"]["pipeline_changed_since"]
    other = orders.Actor(orders.line(holdout="6d"), act.settings, actor="ann")
    found = card.card(other.place, "v1")
    assert found["model"]["pipeline_changed_since"]
    assert "has changed since" in drawing.markdown(found)
    assert routes.current(act.journal, "late-orders") is not None


def test_an_unknown_version_is_named(act: Actor) -> None:
    with pytest.raises(NotFound, match="v9"):
        card.card(act.place, "v9")


def test_the_command_writes_page_and_plot(act: Actor, tmp_path: Path) -> None:
    root = act.settings.root
    (root / "pipeline.py").write_text("from tests.control import orders\npipeline = orders.line()\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ct.cli", "card", *args, "--root", str(root)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    done = run("v1", "--out", str(tmp_path / "v1.md"))
    assert done.returncode == 0, done.stderr
    assert "![Calibration](v1.svg)" in (tmp_path / "v1.md").read_text()
    assert (tmp_path / "v1.svg").read_bytes().startswith(b"<?xml")
    assert json.loads(run("v1", "--json").stdout)["model"]["version"] == "v1"
    away = run("v1", "--out", str(tmp_path / "none" / "v1.md"))
    assert away.returncode == 1
    assert "cannot be written" in away.stderr
    assert "Traceback" not in away.stderr
