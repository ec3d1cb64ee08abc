"""Which rows train, are held back and judge: for every kind of label, and which labels a declaration reads out of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ct import Label
from ct.errors import InvalidPipeline, TrainingFailed
from ct.evaluation.windows import enough, held_back, split
from ct.objectives import Objective

NUMBER, CLASSES = Objective("number"), Objective("classes", ("a", "b", "c"))
KEYS = np.random.default_rng(0).integers(-(2**62), 2**62, 4000)
TIMES = np.arange(4000, dtype=np.int64)


def made(label: np.ndarray, objective: Objective = NUMBER) -> Any:
    return split(TIMES, TIMES, label, holdout_us=1000, objective=objective)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_numbers_of_any_size_split_and_hold_back(size: float) -> None:
    label = np.where(np.arange(4000) % 2, 1.0, -1.0) * size
    found = held_back(made(label), KEYS, label, share=0.1, stopping=True)
    assert found.calibrate.sum() > 200
    assert found.stop.sum() > 200
    assert not (found.train & (found.calibrate | found.stop)).any()
    assert not (found.calibrate & found.stop).any()


def test_what_needs_no_calibration_keeps_its_rows_and_stops_on_the_same() -> None:
    label = np.arange(4000.0)
    with_, without = (held_back(made(label), KEYS, label, share=0.1, stopping=True, calibrating=some) for some in (True, False))
    assert not without.calibrate.any()
    assert (without.stop == with_.stop).all()
    assert (without.train == (with_.train | with_.calibrate)).all()


def test_labels_that_are_all_alike_are_named() -> None:
    with pytest.raises(TrainingFailed, match=r"3000 rows to train on, all labelled '7'"):
        made(np.where(np.arange(4000) < 3000, 7.0, np.arange(4000.0)))
    with pytest.raises(TrainingFailed, match="all labelled 'b'"):
        made(np.where(np.arange(4000) < 3000, 1.0, 2.0), CLASSES)
    with pytest.raises(TrainingFailed, match="no row has a label"):
        made(np.full(4000, np.nan))
    with pytest.raises(TrainingFailed, match="0 rows to train on"):
        enough(np.zeros(4000, dtype=bool), np.arange(4000.0), "to train on", objective=CLASSES)


def texts(*values: Any) -> dict[str, np.ndarray]:
    return {"outcome": np.array(values, dtype=object)}


def test_a_text_that_is_no_class_is_no_label() -> None:
    label = Label("outcome", classes=("late", "on time"), known_at="t")
    found = label.values(texts("on time", "late", "cancelled", None, "Late"))
    np.testing.assert_array_equal(found, [1.0, 0.0, np.nan, np.nan, np.nan])


def test_infinite_and_missing_numbers_are_no_labels() -> None:
    given = {"delay": np.array([1.5, np.inf, -np.inf, np.nan, 1e300])}
    np.testing.assert_array_equal(Label("delay", known_at="t").values(given), [1.5, np.nan, np.nan, np.nan, 1e300])
    np.testing.assert_array_equal(Label("delay", above=2, known_at="t").values(given), [0.0, 1.0, 0.0, np.nan, 1.0])


def test_a_column_of_the_other_kind_is_refused() -> None:
    with pytest.raises(InvalidPipeline, match="column of text"):
        Label("outcome", known_at="t").values(texts("a"))
    with pytest.raises(InvalidPipeline, match="column of numbers"):
        Label("outcome", classes=("a", "b"), known_at="t").values({"outcome": np.array([1.0])})


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", 2)},
        {"classes": ("a", "")},
        {"classes": "ab"},
        {"classes": ("a", "b"), "above": 0},
        {"quantiles": (0.5, 0.1)},
        {"quantiles": (0.0, 0.5)},
        {"quantiles": (0.5, float("nan"))},
        {"quantiles": ("0.5",)},
        {"above": float("nan")},
        {"above": "15"},
    ],
)
def test_a_label_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidPipeline):
        Label("outcome", known_at="t", **fields)


def test_weights_are_counted_and_missing_ones_are_one() -> None:
    label = Label("delay", known_at="t", weight="value")
    np.testing.assert_array_equal(label.weights(np.array([0.0, np.nan, 2.5])), [0.0, 1.0, 2.5])
    with pytest.raises(TrainingFailed, match=r"2 of 4 rows have a weight 'value' that is negative or infinite") as found:
        label.weights(np.array([-1.0, 1.0, np.inf, np.nan]))
    assert found.value.state == "invalid"
    with pytest.raises(InvalidPipeline, match="are no numbers"):
        label.weights(np.array(["a"], dtype=object))
