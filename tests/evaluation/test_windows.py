"""Which rows train and judge: never the same time, never a label that was known too late, never a cohort that is half known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import TrainingFailed
from ct.evaluation.windows import split

HOUR = 3_600_000_000
NONE = np.iinfo(np.int64).min


def world(days: int, delay_hours: float, seed: int, *, now: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten rows an hour; truths come after an exponential delay, and those that are known early are ones more often."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, days * 24 * HOUR, days * 240))
    delay = random.exponential(delay_hours * HOUR, len(times)).astype(np.int64)
    label = (random.random(len(times)) < np.exp(-delay / (delay_hours * HOUR))).astype(float)
    known = times + delay
    if now is not None:
        label = np.where(known <= now, label, np.nan)
        known = np.where(known <= now, known, NONE)
    return times, known, label


@given(st.integers(8, 30), st.floats(0.5, 60), st.integers(1, 6), st.integers(0, 50), st.booleans())
def test_train_and_judge_never_overlap_and_no_label_came_from_the_window(
    days: int, delay: float, holdout: int, seed: int, running: bool
) -> None:
    times, known, label = world(days, delay, seed, now=days * 24 * HOUR if running else None)
    try:
        found = split(times, known, label, holdout_us=holdout * 24 * HOUR, minimum=20)
    except TrainingFailed:
        return
    assert not (found.train & found.judge).any()
    assert times[found.train].max() < found.window.start <= times[found.judge].min()
    assert times[found.judge].max() < found.window.stop
    assert known[found.train].max() < found.window.start, "a label that was known only inside the window trains nothing"
    assert found.window.stop - found.window.start == holdout * 24 * HOUR
    assert not np.isnan(label[found.train | found.judge]).any()


def test_immature_rows_do_not_judge_and_so_bias_nothing() -> None:
    days, now = 40, 40 * 24 * HOUR
    times, known, label = world(days, 24, 1, now=now)
    truth = world(days, 24, 1)[2]
    found = split(times, known, label, holdout_us=3 * 24 * HOUR)
    newest = times >= times.max() - 3 * 24 * HOUR
    assert np.nanmean(label[newest]) - truth[newest].mean() > 0.1, "the labels that are known early are not like the rest"
    window = (times >= found.window.start) & (times < found.window.stop)
    assert abs(label[found.judge].mean() - truth[window].mean()) < 0.01
    assert found.immature == int((~np.isnan(label) & (times >= found.window.stop)).sum()) > 100
    assert found.unlabelled < 0.02 * found.judge.sum()
    assert found.delay == pytest.approx(24 * HOUR * np.log(100), rel=0.15), "99 % of exponential delays"


def test_maturity_may_be_declared() -> None:
    times, known, label = world(30, 12, 2, now=30 * 24 * HOUR)
    found = split(times, known, label, holdout_us=5 * 24 * HOUR, mature_us=10 * 24 * HOUR)
    assert found.delay == 10 * 24 * HOUR
    newest = max(times.max(), known.max())
    assert found.window.stop == newest - 10 * 24 * HOUR + 1


def test_where_every_truth_is_known_at_once_no_row_is_left_out() -> None:
    times = np.arange(2000) * HOUR
    label = (np.arange(2000) % 3 == 0).astype(float)
    found = split(times, times, label, holdout_us=400 * HOUR)
    assert (found.immature, found.unlabelled, found.delay) == (0, 0, 0)
    assert int(found.judge.sum()) == 400


def test_rows_that_never_get_a_label_are_counted() -> None:
    times = np.arange(2000) * HOUR
    label = (np.arange(2000) % 3 == 0).astype(float)
    label[1990:] = np.nan
    label[::10] = np.nan
    found = split(times, np.where(np.isnan(label), NONE, times), label, holdout_us=400 * HOUR)
    assert found.unlabelled == 40
    assert found.immature == 0


def test_too_few_rows_are_refused() -> None:
    times = np.arange(300) * HOUR
    with pytest.raises(TrainingFailed, match="to judge on"):
        split(times, times, (times % 2).astype(float) + np.arange(300) % 2, holdout_us=100 * HOUR)
