"""Calibration: always a rising map into [0, 1], never worse than none on the rows it was fitted on, and it says what it is."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import TrainingFailed
from ct.evaluation.calibration import KNOTS, ROWS, STEEPEST, explain, fit, scale
from ct.objectives import BINARY, PLAIN, Calibration, Objective

THREE = Objective("classes", ("a", "b", "c"))
NUMBER = Objective("number")


def log_loss(scores: np.ndarray, label: np.ndarray) -> float:
    return float(-np.log(np.clip(np.where(label == 1, scores, 1 - scores), 1e-15, 1)).mean())


@st.composite
def fitted_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Raw outputs, some tied, some extreme, and labels that may follow them, oppose them, or neither."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(ROWS, 3 * ROWS))
    size = draw(st.sampled_from([0.01, 1.0, 20.0, 3000.0]))
    raw = random.normal(draw(st.sampled_from([0.0, -4.0])), 1, n) * size
    if draw(st.booleans()):
        raw = np.round(raw / size, draw(st.integers(0, 2))) * size
    power = draw(st.sampled_from([1.0, 0.2, 3.0, -1.0, 0.0])) / size
    label = (random.random(n) < 1 / (1 + np.exp(-np.clip(power * raw, -30, 30)))).astype(np.float64)
    return raw, label


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@given(fitted_rows())
def test_a_fitted_map_rises_stays_in_range_and_is_no_worse(kind: str, rows: tuple[np.ndarray, np.ndarray]) -> None:
    raw, label = rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(kind, BINARY, raw, label)
        grid = np.linspace(-1e4, 1e4, 4001)
        told = found.scores(BINARY, np.concatenate([grid, np.linspace(-30, 30, 4001)]))
    for part in (told[:4001], told[4001:]):
        assert (np.diff(part) >= -1e-12).all()
    assert ((told >= 0) & (told <= 1)).all()
    assert log_loss(found.scores(BINARY, raw), label) <= log_loss(PLAIN.scores(BINARY, raw), label) + 1e-9
    assert len(found.knots) <= KNOTS
    assert all(0 < height < 1 for height in found.heights), "nothing is called certain"
    assert (np.diff(found.knots) > 0).all()
    assert found.steepest <= STEEPEST * (1 + 1e-9)
    # Equal raw outputs have equal scores, and the order of the rows plays no part.
    shuffle = np.random.default_rng(0).permutation(len(raw))
    again = fit(kind, BINARY, raw[shuffle], label[shuffle])
    np.testing.assert_allclose(again.scores(BINARY, raw), found.scores(BINARY, raw), atol=1e-6)


def test_isotonic_mends_what_no_temperature_can() -> None:
    random = np.random.default_rng(0)
    raw = random.normal(0, 2, 20_000)
    truth = 0.1 + 0.5 / (1 + np.exp(-4 * raw))  # never sure of anything
    label = (random.random(20_000) < truth).astype(float)
    isotonic, temperature = fit("isotonic", BINARY, raw, label), fit("temperature", BINARY, raw, label)
    assert np.abs(isotonic.scores(BINARY, raw) - truth).mean() < 0.03
    assert np.abs(temperature.scores(BINARY, raw) - truth).mean() > 0.05
    assert "isotonic in" in explain("isotonic", BINARY, isotonic, label)


def test_tied_scores_with_both_labels_become_their_share() -> None:
    """Ties sorted by label would make two blocks of one score, and the lower one would win."""
    raw = np.repeat([-1.0, 1.0], 1000)
    label = np.concatenate([np.arange(1000) < 300, np.arange(1000) < 900]).astype(float)
    found = fit("isotonic", BINARY, raw, label)
    np.testing.assert_allclose(found.scores(BINARY, np.array([-1.0, 1.0])), [0.3, 0.9], atol=1e-6)


@pytest.mark.parametrize(("rows", "rare"), [(ROWS - 1, 300), (5000, 49)])
def test_too_few_rows_get_a_temperature_and_it_is_said(rows: int, rare: int) -> None:
    random = np.random.default_rng(3)
    label = (np.arange(rows) < rare).astype(float)
    raw = random.normal(size=rows) + 3 * label
    found = fit("isotonic", BINARY, raw, label)
    assert not found.knots
    assert f"{rows:,} rows with {rare:,} of the rarer class" in explain("isotonic", BINARY, found, label)


def test_classes_get_a_temperature_whatever_was_asked() -> None:
    random = np.random.default_rng(1)
    raw = random.normal(size=(3000, 3)) * 2
    shares = PLAIN.scores(THREE, raw)
    label = np.array([random.choice(3, p=row) for row in shares]).astype(float)
    for kind in ("temperature", "isotonic"):
        found = fit(kind, THREE, raw * 3, label)
        assert found.temperature == pytest.approx(3.0, rel=0.1)
        assert not found.knots
    assert "it is for a binary label" in explain("isotonic", THREE, found, label)
    np.testing.assert_allclose(found.scores(THREE, raw * 1e5).sum(axis=1), 1.0)


def test_a_model_of_balanced_classes_gets_its_rates_back() -> None:
    """It was taught that classes are equally frequent. No temperature mends that; a shift does, and isotonic goes on from there."""
    random = np.random.default_rng(4)
    truth = random.normal(-3, 1.5, 40_000)
    label = (random.random(40_000) < 1 / (1 + np.exp(-truth))).astype(float)
    rate = label.mean()
    raw = truth - np.log(rate / (1 - rate))
    for kind in ("temperature", "isotonic"):
        found = fit(kind, BINARY, raw, label, weighed=True)
        assert found.scores(BINARY, raw).mean() == pytest.approx(rate, rel=0.02)
        assert found.shift[0] == pytest.approx(np.log(rate / (1 - rate)), abs=0.15)
        assert "and a shift" in explain(kind, BINARY, found, label)
    assert fit("temperature", BINARY, raw, label).scores(BINARY, raw).mean() > 1.5 * rate

    shares = np.array([0.9, 0.08, 0.02])
    classes = random.choice(3, 30_000, p=shares)
    logits = np.eye(3)[classes] * 1.0 + random.normal(size=(30_000, 3))  # says nothing of how frequent each is
    found = fit("temperature", THREE, logits, classes.astype(float), weighed=True)
    np.testing.assert_allclose(found.scores(THREE, logits).mean(axis=0), shares, atol=0.005)
    two = classes < 2
    absent = fit("temperature", THREE, logits[two], classes[two].astype(float), weighed=True)
    assert 0 < absent.scores(THREE, logits).mean(axis=0)[2] < 1e-3, "rare, not impossible"


def test_none_is_asked_for_and_none_is_made() -> None:
    assert fit("", BINARY, np.ones(10), np.ones(10)) == PLAIN
    assert fit("temperature", NUMBER, np.ones(10), np.ones(10)) == PLAIN
    assert explain("", BINARY, PLAIN, np.ones(10)) == "none"
    assert "no rows" in explain("temperature", BINARY, PLAIN, np.empty(0))


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=30).filter(lambda values: np.ptp(values) > 1e-3),
    st.sampled_from([1e-200, 1e-6, 1.0, 1e9, 1e300]),
)
def test_a_scale_brings_labels_of_any_size_to_zero_and_one_and_back(values: list[float], size: float) -> None:
    label = np.array(values) * size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scale(NUMBER, label)
        standard = found.standard(label)
    assert standard.mean() == pytest.approx(0, abs=1e-6)
    assert standard.std() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(found.scores(NUMBER, standard), label, rtol=1e-9, atol=1e-12 * size)


def test_labels_without_a_spread_are_refused() -> None:
    with pytest.raises(TrainingFailed, match="standard deviation of 0"):
        scale(NUMBER, np.full(5, 3.0))
    found = scale(NUMBER, np.array([1.7e308, -1.7e308] * 3))
    assert found.spread == pytest.approx(1.7e308)


def test_classes_are_not_scaled() -> None:
    label = np.array([0.0, 1.0, 2.0])
    assert scale(THREE, label) == scale(BINARY, label) == PLAIN
    assert PLAIN.standard(label) is label


def test_the_gap_is_measured_in_the_size_of_what_is_predicted() -> None:
    carried = Calibration(center=1e6, spread=100.0)
    assert carried.gap(NUMBER, np.array([1e6 + 1.0]), np.array([1e6])) == pytest.approx(0.01)
    assert PLAIN.gap(BINARY, np.array([0.5, np.nan]), np.array([0.5, 0.5])) == float("inf")
    assert PLAIN.gap(BINARY, np.array([0.5]), np.array([0.5, 0.5])) == float("inf")
    steep = replace(PLAIN, knots=(0.4, 0.41), heights=(0.2, 0.6))
    assert steep.gap(BINARY, np.array([0.24]), np.array([0.2])) == pytest.approx(0.001)
