"""From rows to a fitted model: an ensemble as a candidate, a warm start on new rows and a replay of old ones, before the same gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ct
from ct.control import report, rows, runs
from ct.control.act import Actor
from ct.control.fitting import prepare
from ct.registry import files, held
from ct.registry.held import Held
from ct.serving.runtime import Predictor, Wanted
from ct.training.data import TrainingSet
from tests.control.late import MODEL, land, line, opened, serve

pytestmark = pytest.mark.usefixtures("ray_local")


def newest_run(act: Actor) -> runs.Run:
    return runs.all_runs(act.journal, act.pipeline.name)[-1]


def test_a_stacked_ensemble_and_its_successor_pass_the_gate(tmp_path: Path) -> None:
    model = ct.Ensemble(replace(MODEL, epochs=4), of=2, how="stacked")
    act = opened(tmp_path / "shop", line(model=model))
    land(act, 0)
    first = act.train(act.start_run("first"))
    assert first.verdict == "pass", first.reasons
    made = files.fetch(act.artifacts, first.manifest)
    facts = newest_run(act).facts
    assert facts["weights"] == newest_run(act).facts["weights"]
    assert sorted({entry["member"] for entry in facts["history"]}) == [0, 1]
    assert facts["contract"]["ensemble"] == "stacked"
    served = Predictor.load(made)
    data = rows.rows(act.place, newest_run(act), on_step=lambda _: None)
    scores = served.score_features(rows.take(data.columns, data.split.judge))
    assert np.isfinite(scores).all()
    assert scores.std() > 0.05
    eager = Predictor.load(made, wanted=Wanted("torch"))
    assert (eager.runtime, eager.own_code) == ("torch", False)
    np.testing.assert_allclose(eager.score_features(rows.take(data.columns, data.split.judge)), scores, atol=1e-6)
    told = Held(first.name, first.manifest, "torch", "onnx", "onnx: not here")
    assert report.status(act.settings, act.pipeline)["versions"][0]["runtime"] == "onnx"
    held.tell(act.journal, act.pipeline.name, told)
    shown = report.status(act.settings, act.pipeline)["versions"][0]
    assert (shown["runtime"], shown["instead"]) == ("torch", "onnx: not here")
    sets = prepare(act.place, newest_run(act), data, model)
    assert sets.stack is not None
    assert sets.held is not None
    stacked, calibrating = len(TrainingSet.open(sets.stack)[0]), len(sets.held[1])
    assert stacked + calibrating == data.split.calibrate.sum(), "half of the rows held back stacks, the other half calibrates"
    assert abs(stacked - calibrating) < 0.3 * (stacked + calibrating)

    serve(act, first)
    land(act, 1)
    second = act.train(act.start_run("second"))
    start = newest_run(act).facts["start"]
    assert start["from"] == "v1"
    assert start["fresh"] == []
    assert len(set(start["weights"])) == 2, "each member goes on from its own predecessor"
    assert second.verdict == "pass", second.reasons


def test_new_rows_and_a_replay_of_old_ones_train_a_warm_start(tmp_path: Path) -> None:
    act = opened(tmp_path / "shop", line(rows=ct.newest("9d", older=500, by="country"), weights=[ct.recent("5d"), ct.hard()]))
    land(act, 0)
    serve(act, act.train(act.start_run("first")))
    land(act, 1)
    second = act.train(act.start_run("second"))
    facts = newest_run(act).facts
    assert facts["selection"]["rule"] == "the last 9d and about 500 older rows by country"
    assert facts["weighed"][0].startswith("newer rows more")
    assert facts["start"]["from"] == "v1"
    assert second.metrics["auroc"] > 0.6
    data = rows.rows(act.place, newest_run(act), on_step=lambda _: None)
    newest = data.times[data.split.train].max() - 9 * 86_400_000_000
    old = data.split.train & (data.times <= newest)
    assert 400 < old.sum() < 520
    folder = prepare(act.place, newest_run(act), data, MODEL).train
    weight = TrainingSet.open(folder)[0].weight
    assert weight is not None
    assert weight.mean() == pytest.approx(1.0, abs=1e-3)
    assert weight[data.times[data.split.train] > newest].mean() > weight[data.times[data.split.train] <= newest].mean()
