"""Candidate, champion, baseline and challengers on the same rows, in the real serving runtime, and the verdict about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import ct
from ct.control import evolving, judging, rows
from ct.errors import InvalidPipeline
from ct.features.declare import to_spec
from ct.registry import files
from ct.roles import Feature
from tests.control import orders, shop
from tests.loop import project

WORSE = (2.1, -1.0, -3.0)
"""Right by the amount, wrong about one country."""


@dataclass
class Version:
    """Stands for a predictor: it scores by price and keeps what it was given."""

    features: tuple[Feature, ...]
    threshold: float = 0.5
    instead: str = ""
    given: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def spec(self) -> Any:
        return SimpleNamespace(features=tuple(to_spec(feature) for feature in self.features), lineage={})

    @property
    def encoder(self) -> Any:
        return SimpleNamespace(names=tuple(column.name for feature in self.features for column in feature.outputs()))

    def score_features(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        self.given = self.given or dict(columns)
        return np.asarray(1 / (1 + np.exp(-columns["price"] / 10)), dtype=np.float64)


def test_a_version_gets_the_features_that_it_was_trained_on(tmp_path: Path) -> None:
    gate = ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.01)])
    line = shop.pipeline().replace(features=[ct.numeric("price", clip=(0.0, 1.0))], gate=gate, holdout="10d")
    act = shop.opened(tmp_path / "shop", line)
    shop.land(act, 0, 1, 2, n=240)
    data = rows.rows(act.place, shop.run(act), on_step=lambda _: None)
    now = Version(line.features)
    before = Version((ct.numeric("price"), ct.category("city")))
    reports = [judging.compare(act.place, version, data) for version in (now, before)]  # type: ignore[arg-type]
    assert now.given["price"].max() == 1.0
    assert before.given["price"].max() > 1.0
    assert set(before.given) == {"price", "city"}
    assert np.array_equal(np.clip(before.given["price"], 0.0, 1.0), now.given["price"]), "the same rows in the same order"
    assert len(now.given["price"]) == int(data.split.judge.sum())
    assert reports[0].candidate.metrics != reports[1].candidate.metrics


def test_a_first_version_is_judged_against_the_base_rate_of_the_training_rows(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line())
    report = orders.judged(act)
    assert report.verdict.decision == "pass", report.verdict.reasons
    assert report.champion is None
    found = report.candidate.metrics
    _, data = orders.prepared(act)
    rate, label = data.label[data.split.train].mean(), data.label[data.split.judge]
    assert found["base_log_loss"] == pytest.approx(-(label * np.log(rate) + (1 - label) * np.log(1 - rate)).mean())
    assert report.gains["log_loss", "baseline"].estimate == pytest.approx(found["base_log_loss"] - found["log_loss"], abs=1e-6)
    assert orders.judged(act, (0.0, -0.5, 0.0)).verdict.decision == "fail", "the floor of AUROC"


def test_a_candidate_is_compared_with_the_champion_and_every_number_is_told(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line())
    assert orders.registered(act, live=True).verdict == "pass"
    worse = orders.judged(act, WORSE)
    assert worse.verdict.decision == "fail"
    assert worse.difference is not None
    assert worse.difference.high < -0.02
    assert orders.judged(act).verdict.decision == "pass"
    told = json.loads(json.dumps(worse.to_json(), allow_nan=False))
    assert told["difference"]["estimate"] == pytest.approx(told["candidate"]["auroc"] - told["champion"]["auroc"], abs=1e-6)
    assert told["rows"] == sum(part["rows"] for part in told["over_time"]) == told["difference"]["rows"]
    assert told["blocks"] == 10, "a window of eight days is cut into ten parts"
    assert told["maturity"]["hours"] == pytest.approx(6.0), "orders are delivered after six hours"
    assert sum(part["rows"] for part in told["curve"]) == told["rows"]
    assert set(told["segments"]["country"]) == {"AT", "DE", "FR"}
    assert 0 < told["latency_ms"] < 1000
    assert 0 < told["size_mb"] < 1


def test_a_guard_over_slices_names_the_country_that_got_worse(tmp_path: Path) -> None:
    gate = ct.Gate(
        beats=ct.auc(by=0.0, margin=0.3),
        floors=[ct.auc(0.5)],
        guards=[ct.slices(margin=0.02, metric="log_loss"), ct.fits(latency_ms=1000, size_mb=5)],
    )
    act = orders.opened(tmp_path, orders.line(gate=gate))
    orders.registered(act, live=True)
    report = orders.judged(act, WORSE)
    assert report.verdict.decision == "fail"
    assert "country=FR" in report.verdict.reasons[0]
    assert "country=AT" not in report.verdict.reasons[0]
    small = orders.opened(
        tmp_path / "b", orders.line(gate=ct.Gate(beats=gate.beats, floors=gate.floors, guards=[ct.fits(size_mb=1e-6)]))
    )
    assert "size" in orders.judged(small).verdict.reasons[0]


def test_golden_rows_that_come_out_otherwise_are_an_error(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line())
    _, data = orders.prepared(act)
    its = orders.made(act, data)
    golden = json.loads(its[files.GOLDEN])
    golden["score"][3] += 0.01
    report = judging.judge(act.place, {**its, files.GOLDEN: json.dumps(golden).encode()}, data)
    assert report.verdict.decision == "error"
    assert "golden rows" in report.verdict.reasons[0]
    json.dumps(report.to_json(), allow_nan=False)


def test_a_champion_that_cannot_be_loaded_is_an_error_not_a_crash(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line())
    version = orders.registered(act, live=True)
    graph = act.artifacts.manifest(version.manifest)[files.ONNX]
    Path(act.artifacts.address(graph)).write_bytes(b"other bytes")
    report = orders.judged(act)
    assert report.verdict.decision == "error"
    assert "the champion v1 cannot be loaded" in report.verdict.reasons[0]


def costs(scores: NDArray[Any], labels: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> float:
    """What wrong promises cost: a late order that was not seen its amount, a warning in vain one."""
    said = scores >= 0.5
    return float(np.where(said, labels == 0, (labels == 1) * columns["amount"]).mean())


def test_a_metric_of_ones_own_judges_and_is_reported_everywhere(tmp_path: Path) -> None:
    gate = ct.Gate(
        beats=[ct.auc(by=0.0, margin=0.5), ct.better("cost", lower=True)],
        floors=[ct.at_most("cost", 1e6)],
        metrics={"cost": costs},
    )
    act = orders.opened(tmp_path, orders.line(gate=gate))
    orders.registered(act, live=True)
    report = orders.judged(act, WORSE)
    assert report.verdict.decision in ("fail", "inconclusive")
    assert report.champion is not None
    assert report.candidate.metrics["cost"] > report.champion.metrics["cost"]
    assert report.gains["cost", "champion"].estimate < 0
    told = report.to_json()
    assert all("cost" in part for part in (*told["over_time"], *told["segments"]["country"].values()))


def test_a_metric_of_ones_own_that_raises_is_an_error_with_its_words(tmp_path: Path) -> None:
    gate = ct.Gate(
        beats=ct.auc(by=0.0), floors=[ct.at_most("cost", 1)], metrics={"cost": lambda s, y, columns: columns["price"].sum()}
    )
    report = orders.judged(orders.opened(tmp_path, orders.line(gate=gate)))
    assert report.verdict.decision == "error"
    assert "cost was not measured" in report.verdict.reasons[0]
    assert "KeyError: 'price'" in report.verdict.warnings[0]


def test_a_challenger_is_reported_beside_a_candidate_that_is_not_worth_it(tmp_path: Path) -> None:
    gate = ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.3)], challengers=[ct.LightGBM(rounds=60)])
    act = orders.opened(tmp_path, orders.line(gate=gate))
    report = orders.judged(act, WORSE)
    (found,) = report.to_json()["challengers"]
    assert found["metrics"]["auroc"] > report.candidate.metrics["auroc"]
    assert any(text.startswith("LightGBM is better by") for text in report.verdict.warnings)
    assert orders.judged(act, WORSE).to_json()["challengers"][0]["metrics"] == found["metrics"], (
        "the same rows, the same scores"
    )
    good = orders.judged(act)
    assert not good.verdict.warnings, "the truth itself is not beaten"
    assert good.to_json()["challengers"][0]["gain"]["estimate"] > 0


@dataclass(frozen=True)
class Odd:
    """A challenger that gives whatever it is told to, and keeps the labels it was shown."""

    gives: Any
    name: str = "Odd"
    shown: list[Any] = field(default_factory=list, compare=False)

    def missing(self) -> str:
        return ""

    def scores(self, objective: Any, train: Any, asked: Any) -> Any:
        self.shown.append(asked.label)
        return self.gives(train, asked)


def broken(train: Any, asked: Any) -> Any:
    raise MemoryError("no room for so many leaves")


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (broken, "MemoryError: no room for so many leaves"),
        (lambda train, asked: np.zeros((len(asked.label), 2)), "scores of shape"),
        (lambda train, asked: np.full(len(asked.label), np.nan), "no finite ones"),
    ],
)
def test_a_challenger_that_fails_is_told_and_stops_nobody(tmp_path: Path, gives: Any, said: str) -> None:
    odd = Odd(gives)
    gate = ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.3)], challengers=[odd])
    report = orders.judged(orders.opened(tmp_path, orders.line(gate=gate)))
    assert report.verdict.decision == "pass"
    assert report.to_json()["challengers"] == []
    (warning,) = report.verdict.warnings
    assert warning.startswith("the challenger Odd failed")
    assert said in warning
    assert np.isnan(odd.shown[0]).all(), "the truth of the rows that judge is nobody's to learn from"


def test_a_number_is_judged_against_the_last_value_of_its_country(tmp_path: Path) -> None:
    gate = ct.Gate(
        beats=ct.better("mae", margin=0.05),
        floors=[ct.at_most("mae", 2)],
        guards=[ct.baseline(last=True, per="country"), ct.slices(margin=0.2)],
        challengers=[ct.LightGBM(rounds=30)],
    )
    act = orders.opened(tmp_path, orders.line(label=ct.Label("days_late", known_at="delivered_at"), gate=gate))
    assert orders.registered(act, (0.8, 0.9, 0.5), live=True).verdict == "pass"
    report = orders.judged(act, (0.0, 4.0, 0.0))
    assert report.verdict.decision == "fail"
    assert report.gains["mae", "champion"].high < 0
    assert set(report.to_json()["challengers"][0]["metrics"]) >= {"mae", "rmse", "r2"}


def test_a_champion_that_answers_another_question_is_an_error(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line())
    orders.registered(act, live=True)
    number = ct.Gate(beats=ct.better("mae"), floors=[ct.at_most("mae", 9)])
    act.pipeline = orders.line(label=ct.Label("days_late", known_at="delivered_at"), gate=number)
    act.place = judging.Place(act.pipeline, act.settings, act.journal, act.artifacts)
    report = orders.judged(act, (0.8, 0.9, 0.5))
    assert report.verdict.decision == "error"
    assert "answers another question (binary)" in report.verdict.reasons[0]


def test_a_champion_that_reads_a_table_which_is_no_more_is_an_error_not_a_crash(tmp_path: Path) -> None:
    weather = ct.Table("weather", key="country", time="seen_at", owner="shop")
    wet = orders.line(
        tables=[weather],
        features=[ct.latest(weather, "rain", within="60d"), ct.category("country")],
        gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]),
    )
    act = orders.opened(tmp_path, wet)
    seen = {
        "country": ["AT", "DE", "FR"],
        "seen_at": pa.array([project.START] * 3, pa.timestamp("us", "UTC")),
        "rain": [1.0, 2.0, 3.0],
    }
    pq.write_table(pa.table(seen), tmp_path / "weather.parquet")
    assert act.ingest("weather", tmp_path / "weather.parquet").kind == "published"
    orders.registered(act, (0.0, -0.9, 0.9), live=True)
    act.pipeline = orders.line()
    act.place = judging.Place(act.pipeline, act.settings, act.journal, act.artifacts)
    run, data = orders.prepared(act)
    report = judging.judge(act.place, orders.made(act, data), data)
    assert report.verdict.decision == "error"
    assert "the champion v1 cannot be asked" in report.verdict.reasons[0]
    hard = act.pipeline.replace(weights=[ct.hard()])
    weights = evolving.weights(judging.Place(hard, act.settings, act.journal, act.artifacts), run, data)
    assert weights is not None
    assert (weights == 1).all(), "as without a champion"


def test_rows_that_a_version_was_trained_on_do_not_judge_it(tmp_path: Path) -> None:
    act = orders.opened(tmp_path, orders.line(holdout="3d"))
    orders.registered(act, live=True)
    whole = orders.judged(act)
    longer = orders.line(holdout="8d")
    act.pipeline, act.place = longer, judging.Place(longer, act.settings, act.journal, act.artifacts)
    report = orders.judged(act)
    assert report.window == whole.window, "the champion knows all rows before that"
    assert report.candidate.rows == whole.candidate.rows
    assert report.champion is not None
    assert report.champion.rows == report.candidate.rows
    assert "v1 was trained on such" in report.verdict.warnings[0]
    assert min(part["start"] for part in report.facts["over_time"]) >= min(part["start"] for part in whole.facts["over_time"])


def test_a_gate_that_asks_for_what_the_label_has_not_is_no_pipeline() -> None:
    with pytest.raises(InvalidPipeline, match="floor 'mae'"):
        orders.line(gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.at_most("mae", 3)]))
    with pytest.raises(InvalidPipeline, match="there is no floor"):
        orders.line(gate=ct.Gate(beats=ct.auc(by=0.0)))
