"""Challengers: LightGBM for every kind of label, and what any challenger must keep."""

from __future__ import annotations

import numpy as np
import pytest

import ct
from ct.evaluation.metrics import measured
from ct.evaluation.trivial import Trivial
from ct.objectives import BINARY, Objective
from ct.roles import Challenger, Encoded

KINDS = [
    BINARY,
    Objective("classes", ("a", "b", "c")),
    Objective("number"),
    Objective("quantiles", quantiles=(0.1, 0.5, 0.9)),
]
BETTER = {"binary": "log_loss", "classes": "log_loss", "number": "mae", "quantiles": "pinball"}


def rows(objective: Objective, seed: int, n: int = 1500) -> Encoded:
    """A label that a number and a category decide together."""
    random = np.random.default_rng(seed)
    numeric = random.normal(0, 1, (n, 2)).astype(np.float32)
    category = random.integers(0, 5, (n, 1))
    signal = 2.0 * numeric[:, 0] + np.array([-2.0, -1.0, 0.0, 1.0, 4.0])[category[:, 0]]
    noisy = signal + random.normal(0, 0.5, n)
    label = {"binary": noisy > 0, "classes": np.digitize(noisy, [-1, 1])}.get(objective.kind, noisy)
    return Encoded(numeric, category, np.asarray(label, np.float64), np.ones(n))


@pytest.mark.parametrize("objective", KINDS, ids=lambda o: o.kind)
def test_lightgbm_learns_every_kind_of_label(objective: Objective) -> None:
    challenger = ct.LightGBM(rounds=60)
    assert isinstance(challenger, Challenger)
    assert challenger.missing() == ""
    train, asked = rows(objective, 0), rows(objective, 1)
    scores = challenger.scores(objective, train, asked)
    assert scores.shape == ((1500, objective.outputs) if objective.outputs > 1 else (1500,))
    found = measured(objective, scores, asked.label, trivial=Trivial.learned(objective, train.label))
    name = BETTER[objective.kind]
    assert found[name] < 0.7 * found[f"base_{name}"]
    if objective.kind == "quantiles":
        assert (np.diff(scores, axis=1) >= 0).all()
    if objective.kind == "classes":
        assert scores.sum(axis=1) == pytest.approx(1.0)


def test_the_same_rows_give_the_same_scores_and_the_labels_asked_for_are_not_read() -> None:
    challenger = ct.LightGBM(rounds=30)
    train, asked = rows(BINARY, 0), rows(BINARY, 1)
    first = challenger.scores(BINARY, train, asked)
    blind = Encoded(asked.numeric, asked.category, np.full(1500, np.nan), asked.weight)
    assert np.array_equal(challenger.scores(BINARY, train, blind), first)


def test_weights_count() -> None:
    challenger = ct.LightGBM(rounds=30)
    train, asked = rows(BINARY, 0), rows(BINARY, 1)
    heavy = Encoded(train.numeric, train.category, train.label, np.where(train.label == 1, 10.0, 1.0))
    assert challenger.scores(BINARY, heavy, asked).mean() > challenger.scores(BINARY, train, asked).mean() + 0.02
