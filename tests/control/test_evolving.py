"""What a run takes over from the champion, on a small shop whose orders come late: real Ray, real trainings, real gates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ct
from ct.control import evolving, fitting, rows, runs
from ct.control.act import Actor
from ct.control.place import Place
from ct.errors import TrainingFailed
from ct.features.encode import Encoder
from ct.objectives import BINARY, Calibration, Objective
from ct.registry import files, versions
from ct.registry.files import ModelSpec
from ct.roles import Weighed
from ct.serving.runtime import Predictor
from ct.training import trainer
from ct.training.data import TrainingSet
from tests.control.late import MODEL, all_late, italian, land, line, opened, serve, with_line

pytestmark = pytest.mark.usefixtures("ray_local")


class Plain(torch.nn.Module):
    """A module whose tensors have names of their own."""

    def __init__(self, numeric: int, cardinalities: list[int], width: int = 16) -> None:
        super().__init__()
        self.only = torch.nn.Linear(numeric, 1)

    def forward(self, numeric: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        return self.only(numeric).squeeze(1)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Actor:
    """Two shards have landed; a champion was trained on the first one only."""
    act = opened(tmp_path_factory.mktemp("life") / "shop", line())
    land(act, 0)
    first = act.train(act.start_run("first"))
    assert first.verdict == "pass", first.reasons
    serve(act, first)
    land(act, 1, change=italian)
    return act


@pytest.fixture(scope="module")
def begun(act: Actor) -> runs.Run:
    return act.start_run("second")


@pytest.fixture(scope="module")
def data(act: Actor, begun: runs.Run) -> rows.Rows:
    return rows.rows(act.place, begun, on_step=lambda _: None)


@pytest.fixture(scope="module")
def champion(act: Actor, begun: runs.Run) -> Predictor:
    return Predictor.load(files.fetch(act.artifacts, begun.start["manifest"]))


def fitted_encoder(act: Actor, data: rows.Rows) -> Encoder:
    return Encoder.fit(rows.take(data.columns, data.split.train), act.pipeline.outputs)


def test_the_first_run_begins_from_scratch_and_says_why(act: Actor) -> None:
    (first, *_) = runs.all_runs(act.journal, act.pipeline.name)
    assert first.start == {}
    assert first.facts["start"] == {"from": "scratch", "because": "there was no champion", "warm": 0}
    assert first.facts["label_rates"][1] == pytest.approx(0.4, abs=0.2)


def test_a_warm_start_says_of_every_row_what_the_champion_says(
    act: Actor, begun: runs.Run, data: rows.Rows, champion: Predictor
) -> None:
    found = evolving.begin(act.place, begun, MODEL, fitted_encoder(act, data))
    assert found.facts["from"] == "v1"
    assert found.facts["fresh"] == []
    assert found.facts["new_values"] == {"country": 1}
    assert found.encoder != champion.encoder
    every = np.ones(len(data.label), dtype=bool)
    folder = fitting.save(act.place, data, found.encoder, every, "everything")
    assert found.weights[0] is not None
    raw = trainer.raw(folder, MODEL, BINARY, found.weights[0])
    spec = ModelSpec.from_bytes(files.fetch(act.artifacts, begun.start["manifest"])[files.SPEC])
    scores = Calibration.from_json(spec.calibration).scores(BINARY, raw)
    np.testing.assert_allclose(scores, champion.score_features(data.columns), atol=1e-5)


def test_where_new_values_change_the_modules_shape_they_stay_unknown(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    fitted = fitted_encoder(act, data)
    country = fitted.categories[0]
    many = replace(country, values=(*country.values, *(f"X{at}" for at in range(40))))  # type: ignore[arg-type]
    found = evolving.begin(act.place, begun, MODEL, replace(fitted, categories=(many,)))
    assert found.facts["fresh"] == []
    assert found.facts["new_values"] == {}
    assert found.encoder.cardinalities[0] == country.size - 1


def test_a_deeper_module_takes_what_fits_and_names_what_does_not(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    deeper = replace(MODEL, options={"width": 16, "depth": 3})
    found = evolving.begin(act.place, begun, deeper, fitted_encoder(act, data))
    assert 0 < found.facts["carried"] < found.facts["carried"] + len(found.facts["fresh"])
    assert found.weights[0] is not None
    assert not set(found.weights[0]) & set(found.facts["fresh"])
    assert all(name in found.weights[0] for name in ("layers.0.weight", "inputs.categories.0.weight"))


def test_reasons_to_begin_from_scratch(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    fitted = fitted_encoder(act, data)

    def reason(place: Place, model: Any = MODEL, run: runs.Run = begun, encoder: Encoder = fitted) -> str:
        found = evolving.begin(place, run, model, encoder)
        assert found.weights == (None,) * len(model.members)
        assert found.encoder == encoder
        return str(found.facts.get("because", ""))

    assert "the features are others" in reason(with_line(act, features=[ct.numeric("amount")]))
    other = ct.Label("days_late", above=1, known_at="delivered_at")
    assert "the label is another one" in reason(with_line(act, label=other))
    tired = replace(begun, start={**begun.start, "warm": 3})
    assert "3 runs in a row" in reason(act.place, replace(MODEL, fresh_every=3), tired)
    assert evolving.begin(act.place, tired, replace(MODEL, fresh_every=4), fitted).facts["warm"] == 4
    moved = replace(fitted, scales=(replace(fitted.scales[0], mean=1e4),))
    assert "the scale of amount has moved" in reason(act.place, encoder=moved)
    assert reason(act.place, replace(MODEL, start="scratch")) == ""
    wider = replace(MODEL, model=Plain)
    assert "no weight of v1 fits" in reason(act.place, wider)


def test_weighers_see_the_champions_scores_and_the_drift_of_slices(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    mask = data.split.train
    hard = evolving.weights(with_line(act, weights=[ct.hard(1.0)]), begun, data)
    assert hard is not None
    assert hard.mean() == pytest.approx(1.0)
    amount, label = data.columns["amount"][mask], data.label[mask]
    odd = (amount > 120) & (label == 0)
    assert hard[odd].mean() > 1.5 > hard[(amount > 120) & (label == 1)].mean()
    drifted = evolving.weights(with_line(act, weights=[ct.drifted("country")]), begun, data)
    assert drifted is not None
    np.testing.assert_array_equal(drifted, 1.0)  # nothing but noise between the two shards, within a country
    assert fitting.row_weights(act.place, begun, data) is None
    lonely = with_line(act, weights=[ct.drifted("country")], features=[ct.numeric("amount")])
    with pytest.raises(TrainingFailed, match="segments that are category features too"):
        evolving.weights(lonely, begun, data)


def test_a_balanced_model_is_calibrated_as_one_of_weighed_rows_and_balanced_once(
    act: Actor, begun: runs.Run, data: rows.Rows
) -> None:
    place = with_line(act, weights=[ct.recent("5d")])
    balanced = fitting.prepare(act.place, begun, data, replace(MODEL, balanced=True))
    plain = fitting.prepare(act.place, begun, data, MODEL)
    assert (balanced.weighed, plain.weighed) == (True, False)
    assert TrainingSet.open(balanced.train)[0].weight is None, "the feed balances classes"
    weighed = TrainingSet.open(fitting.prepare(place, begun, data, replace(MODEL, balanced=True)).train)[0]
    assert weighed.weight is not None
    np.testing.assert_allclose(weighed.weight, evolving.weights(place, begun, data), rtol=1e-6)


def test_a_weigher_that_fails_fails_the_run_and_says_where(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    with pytest.raises(TrainingFailed, match=r"a weigher raised KeyError: 'weather' \(test_evolving.py:\d+\)"):
        evolving.weights(with_line(act, weights=[Broken()]), begun, data)
    short = with_line(act, weights=[Broken("amount")])
    with pytest.raises(TrainingFailed, match="mend weights"):
        evolving.weights(short, begun, data)


@dataclass(frozen=True)
class Broken:
    """A weigher that asks for a feature there may not be, and gives one weight only."""

    feature: str = "weather"

    def segments(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Weighed) -> Any:
        return rows.features[self.feature][:1]

    def explain(self) -> str:
        return "by the weather"


def test_a_slice_that_has_drifted_counts_more(act: Actor, begun: runs.Run, data: rows.Rows) -> None:
    until = runs.all_runs(act.journal, act.pipeline.name)[0].facts["trained_until"]
    french = (data.segments["country"] == "FR") & (data.times >= until)
    dear = replace(data, columns={**data.columns, "amount": np.where(french, 500.0, data.columns["amount"])})
    found = evolving.weights(with_line(act, weights=[ct.drifted("country", gain=2)]), begun, dear)
    assert found is not None
    country = data.segments["country"][data.split.train]
    by = {name: set(np.round(found[country == name], 9)) for name in ("AT", "DE", "FR")}
    assert by["AT"] == by["DE"]
    assert min(by["FR"]) > 1.5 * max(by["AT"])


def test_a_run_keeps_the_champion_that_it_began_with(act: Actor, begun: runs.Run) -> None:
    other = act.train(act.start_run("another"))
    serve(act, other)
    assert evolving.frozen(act.place)["version"] == other.name
    made = act.train(begun)
    (run,) = [run for run in runs.all_runs(act.journal, act.pipeline.name) if run.id == begun.id]
    assert run.facts["start"]["from"] == "v1", "not the one that was promoted meanwhile"
    assert run.facts["start"]["champion_weights"] == begun.start["weights"]
    assert made.metrics["auroc"] > 0.6
    data = rows.rows(act.place, run, on_step=lambda _: None)
    again = fitting.fit(act.place, run, data, MODEL, workers=0, gpu=False, on_step=lambda _: None, name="again")
    assert again.trained.digest == run.facts["weights"], "made again, it begins with the same weights"
    assert evolving.frozen(act.place)["warm"] == 1, "the champion itself began with a champion's weights"


def test_labels_that_jump_stop_the_run_until_a_person_says_they_are_right(tmp_path: Path) -> None:
    act = opened(tmp_path / "jump", line(model=replace(MODEL, epochs=1, start="scratch"), holdout="2d"))
    land(act, 0)
    serve_first = act.train(act.start_run("first"))
    act.overrule(serve_first.name, "a test")
    serve(act, versions.get(act.journal, act.pipeline.name, serve_first.name))
    land(act, 1, change=all_late)
    land(act, 2)
    with pytest.raises(TrainingFailed, match=r"the share of label 1 went from .* train with --accept-labels") as caught:
        act.train(act.start_run("second"))
    assert caught.value.state == "invalid"
    failed = runs.all_runs(act.journal, act.pipeline.name)[-1]
    assert (failed.outcome, failed.state) == ("failed", "invalid")
    made = act.train(act.start_run("third", accepts={"labels": "the strike was real"}, seeds=2))
    run = runs.all_runs(act.journal, act.pipeline.name)[-1]
    assert run.accepts == {"labels": "the strike was real"}
    assert run.facts["seeds"]["seeds"] == [7, 8]
    auroc = run.facts["seeds"]["metrics"]["auroc"]
    assert auroc["values"][0] == pytest.approx(made.metrics["auroc"], abs=1e-4), "the version is the first seed's"
    assert auroc["mean"] == pytest.approx(np.mean(auroc["values"]))
    assert auroc["deviation"] == pytest.approx(abs(auroc["values"][0] - auroc["values"][1]) / np.sqrt(2))


@pytest.mark.parametrize(
    ("objective", "before", "label", "jumps"),
    [
        (BINARY, [0.8, 0.2], np.r_[np.ones(60), np.zeros(40)], True),
        (BINARY, [0.8, 0.2], np.r_[np.ones(40), np.zeros(60)], False),
        (BINARY, [0.8, 0.2], np.ones(500), True),
        (BINARY, [0.998, 0.002], np.r_[np.ones(2), np.zeros(198)], False),
        (BINARY, [], np.ones(500), False),
        (Objective("classes", ("a", "b", "c")), [0.5, 0.3, 0.2], np.repeat([0.0, 1.0], 200), True),
        (Objective("number"), [10.0, 2.0], np.full(200, 17.0), True),
        (Objective("number"), [10.0, 2.0], np.full(200, 15.0), False),
    ],
)
def test_a_jump_is_beyond_the_factor_and_beyond_noise(
    objective: Objective, before: list[float], label: np.ndarray, jumps: bool
) -> None:
    assert bool(evolving.jumped(objective, before, label, 3.0)) == jumps


def test_the_jump_test_is_rarely_wrong_without_one() -> None:
    random = np.random.default_rng(5)
    wrong = sum(bool(evolving.jumped(BINARY, [0.98, 0.02], (random.random(150) < 0.02).astype(float), 3.0)) for _ in range(400))
    assert wrong <= 4
