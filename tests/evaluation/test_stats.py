"""Intervals against brute force and simulation; e-values against their guarantee."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.errors import TrainingFailed
from ct.evaluation import stats


def pair(rng: np.random.Generator, n: int, drop: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated scores of one truth; `drop` weakens the second."""
    label = (rng.random(n) < 0.3).astype(float)
    base = label + rng.normal(size=n)
    return base + 0.4 * rng.normal(size=n), (1 - drop) * label + base - label + 0.4 * rng.normal(size=n), label


def difference(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> stats.Interval:
    """AUROC(a) - AUROC(b) with the interval that the rows' pulls give: DeLong's."""
    (area, ours), (other, theirs) = stats.auroc_influence(a, label), stats.auroc_influence(b, label)
    half = 1.959963985 * math.sqrt(float(np.square(ours - theirs).sum()))
    return stats.Interval(area - other, area - other - half, area - other + half)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_rightly_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    score, label = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    one, zero = score[label == 1], score[label == 0]
    if not len(one) or not len(zero):
        with pytest.raises(TrainingFailed):
            stats.auroc_interval(score, label)
        return
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a in one for b in zero])
    assert stats.auroc_interval(score, label).estimate == pytest.approx(wanted)


def test_the_rows_pulls_give_delongs_variance_as_the_textbook_has_it() -> None:
    a, b, label = pair(np.random.default_rng(0), 60)
    one, zero = label == 1, label == 0
    psi = [(s[one][:, None] > s[zero]) + 0.5 * (s[one][:, None] == s[zero]) for s in (a, b)]
    rows, columns = np.cov([p.mean(1) for p in psi], ddof=0), np.cov([p.mean(0) for p in psi], ddof=0)
    s = rows / one.sum() + columns / zero.sum()
    half = 1.959963985 * math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    found = difference(a, b, label)
    assert found.estimate == pytest.approx(psi[0].mean() - psi[1].mean())
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half))


def test_it_covers_no_difference_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    found = [difference(*pair(rng, 400)) for _ in range(400)]
    covered = np.mean([i.low <= 0 <= i.high for i in found])
    assert 0.92 <= covered <= 0.98


def test_it_sees_a_difference() -> None:
    rng = np.random.default_rng(2)
    found = [difference(*pair(rng, 2000, drop=0.25)) for _ in range(50)]
    assert np.mean([i.low > 0 for i in found]) > 0.9


def test_equal_scores_differ_by_nothing() -> None:
    a, _, label = pair(np.random.default_rng(3), 100)
    assert difference(a, a, label) == stats.Interval(0.0, 0.0, 0.0)


def test_one_class_is_an_error_that_says_so() -> None:
    with pytest.raises(TrainingFailed, match="0 rows of class 1"):
        stats.auroc_influence([0.1, 0.2], [0, 0])


def test_losses_stay_finite_and_calibration_error_is_known() -> None:
    assert np.isfinite(stats.log_losses([0.0, 1.0], [1.0, 0.0])).all()
    assert stats.calibration_error(np.full(100, 0.25), np.r_[np.ones(25), np.zeros(75)]) == pytest.approx(0.0)
    assert stats.calibration_error(np.full(100, 0.75), np.r_[np.ones(25), np.zeros(75)]) == pytest.approx(0.5)
    assert stats.calibration_error([0.0, 1.0], [0, 1]) == 0.0


# -- e-values


def test_the_mean_of_the_worse_arm_e_value_is_one_under_the_null() -> None:
    for weight, ratio in ((0.1, 1.0), (0.5, 1.0), (0.1, 1.5)):
        null = weight * ratio / (weight * ratio + 1 - weight)
        mean = sum(
            math.comb(6, k) * null**k * (1 - null) ** (6 - k) * stats.worse_arm([(weight, 6, k)], ratio) for k in range(7)
        )
        assert mean == pytest.approx(1.0)


def test_the_means_of_the_other_e_values_are_one_under_the_null() -> None:
    for rate in (0.01, 0.6):
        mean = sum(math.comb(5, k) * rate**k * (1 - rate) ** (5 - k) * stats.above_rate(rate, 5, k) for k in range(6))
        assert mean == pytest.approx(1.0)
    mean = sum(math.comb(8, k) * 0.3**k * 0.7 ** (8 - k) * stats.uneven_split([(0.3, 8, k)]) for k in range(9))
    assert mean == pytest.approx(1.0)


def test_levels_multiply_and_whole_traffic_says_nothing() -> None:
    assert stats.worse_arm([(1.0, 50, 50), (0.0, 50, 0)]) == 1.0
    assert stats.worse_arm([]) == 1.0
    assert stats.worse_arm([(0.1, 5, 4), (0.1, 5, 4)]) == pytest.approx(stats.worse_arm([(0.1, 10, 8)]))
    assert stats.worse_arm([(0.5, 10**7, 10**7)]) == pytest.approx(stats.E_MAX)


def test_a_broken_split_shows() -> None:
    rng = np.random.default_rng(5)
    n = np.arange(100, 10_001, 100)
    false = sum(
        max(stats.uneven_split([(0.1, int(t), int(k))]) for t, k in zip(n, rng.binomial(100, 0.1, 100).cumsum(), strict=True))
        >= 1000
        for _ in range(300)
    )
    assert false <= 2
    assert stats.uneven_split([(0.1, 5000, 700)]) > 1000


@pytest.mark.parametrize("moving", [0.0, 0.2], ids=["a steady base", "a base that moves while the weight grows"])
def test_an_effect_lies_in_its_bounds_at_every_look(moving: float) -> None:
    rng, missed, wide = np.random.default_rng(21), 0, []
    weight = np.repeat([0.1, 0.5], 1500)
    base = 0.3 + moving * np.sin(np.arange(3000) / 300)
    for _ in range(150):
        treated = rng.random(3000) < weight
        value = (rng.random(3000) < base - 0.08 * treated).astype(float)
        looks = [stats.effect(weight[:n], treated[:n], value[:n], alpha=0.05) for n in (30, 100, 300, 900, 1500, 2000, 3000)]
        missed += any(not look.low <= -0.08 <= look.high for look in looks)
        wide.append(looks[-1].high - looks[-1].low)
    assert missed / 150 <= 0.05
    assert np.median(wide) < 0.25, "bounds that are never wrong because they say nothing"


def test_an_effect_without_rows_or_without_a_choice_is_unknown() -> None:
    assert stats.effect([], [], [], alpha=0.05) == stats.Interval(0.0, -1.0, 1.0)
    assert stats.effect([1.0, 0.0], [1, 0], [0.2, 0.9], alpha=0.05) == stats.Interval(0.0, -1.0, 1.0)
    n = 2000
    certain = stats.effect(np.full(n, 0.5), np.arange(n) % 2, np.arange(n) % 2, alpha=0.05)
    assert certain.low > 0.8
