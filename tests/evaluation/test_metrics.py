"""Metrics against their definitions, for every objective; the trivial baseline; parts of the rows; gains against slow, obvious ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.evaluation import own
from ct.evaluation.metrics import best_threshold, by_segment, curve, measured, metrics, over_time
from ct.evaluation.paired import COMPARED, Answers, blocks, gain, holm, own_gain
from ct.evaluation.stats import auroc_influence, calibration_error
from ct.evaluation.trivial import Trivial, last_known
from ct.objectives import BINARY, Objective

DAY = 86_400_000_000
CLASSES = Objective("classes", ("a", "b", "c"))
NUMBER = Objective("number")
QUANTILES = Objective("quantiles", quantiles=(0.1, 0.5, 0.9))


def binary(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.random(n)
    return scores, (random.random(n) < scores).astype(float)


def classes(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    scores = random.dirichlet([1.0, 1.0, 1.0], n)
    return scores, np.array([random.choice(3, p=row) for row in scores]).astype(float)


def test_binary_metrics_against_their_definitions() -> None:
    scores, labels = binary()
    found = metrics(scores, labels, 0.5)
    ones, zeros = scores[labels == 1], scores[labels == 0]
    assert found["auroc"] == pytest.approx((ones[:, None] > zeros[None, :]).mean(), abs=1e-6)
    assert found["brier"] == pytest.approx(((scores - labels) ** 2).mean(), abs=1e-6)
    loss = -(labels * np.log(scores) + (1 - labels) * np.log(1 - scores)).mean()
    assert found["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert found["ece"] == pytest.approx(calibration_error(scores, labels), abs=1e-5)
    assert found["base_rate"] == pytest.approx(labels.mean())
    said = scores >= 0.5
    assert found["f1"] == pytest.approx(2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum()), abs=1e-6)
    assert found["accuracy"] == pytest.approx((said == (labels == 1)).mean(), abs=1e-6)


def test_labels_of_one_class_have_no_auroc_and_no_nan() -> None:
    found = metrics(np.array([0.2, 0.4]), np.zeros(2), 0.5)
    assert "auroc" not in found
    assert all(map(math.isfinite, found.values()))


def test_class_metrics_against_their_definitions() -> None:
    scores, labels = classes()
    found = measured(CLASSES, scores, labels)
    place = labels.astype(int)
    best = scores.argmax(axis=1)
    assert found["accuracy"] == pytest.approx((best == place).mean(), abs=1e-6)
    assert found["log_loss"] == pytest.approx(-np.log(scores[np.arange(len(place)), place]).mean(), abs=1e-6)
    assert found["brier"] == pytest.approx(((scores - np.eye(3)[place]) ** 2).sum(axis=1).mean(), abs=1e-6)
    areas, f1 = [], []
    for at in range(3):
        ones, zeros = scores[place == at, at], scores[place != at, at]
        areas.append((ones[:, None] > zeros[None, :]).mean())
        f1.append(2 * ((best == at) & (place == at)).sum() / ((best == at).sum() + (place == at).sum()))
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found["f1"] == pytest.approx(np.mean(f1), abs=1e-6)
    assert found["ece"] == pytest.approx(calibration_error(scores.max(axis=1), best == place), abs=1e-5)
    absent = measured(CLASSES, scores[place != 2], labels[place != 2])
    assert all(map(math.isfinite, absent.values())), "a class without rows is left out of the means"


def test_number_and_quantile_metrics_against_their_definitions() -> None:
    random = np.random.default_rng(2)
    label = random.gamma(2.0, 10.0, 2000)
    score = label + random.normal(0, 5, 2000)
    found = measured(NUMBER, score, label)
    assert found["mae"] == pytest.approx(np.abs(score - label).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(((score - label) ** 2).mean()))
    assert found["r2"] == pytest.approx(1 - ((score - label) ** 2).sum() / ((label - label.mean()) ** 2).sum())
    quantiles = np.quantile(label, QUANTILES.quantiles)
    told = measured(QUANTILES, np.tile(quantiles, (2000, 1)), label)
    assert told["coverage"] == pytest.approx(0.8, abs=0.01)
    assert told["coverage_0.5"] == pytest.approx(0.5, abs=0.01)
    gap = label - quantiles[2]
    assert told["pinball_0.9"] == pytest.approx(np.where(gap > 0, 0.9 * gap, -0.1 * gap).mean())
    assert told["pinball"] == pytest.approx(np.mean([told[f"pinball_{q:g}"] for q in QUANTILES.quantiles]))


def test_the_baseline_is_learned_on_training_rows_and_judged_on_the_others() -> None:
    scores, labels = binary()
    trained = Trivial.learned(BINARY, np.array([1.0] + [0.0] * 9))
    found = measured(BINARY, scores, labels, trivial=trained)
    assert found["base_log_loss"] == pytest.approx(-(labels * np.log(0.1) + (1 - labels) * np.log(0.9)).mean())
    assert found["base_brier"] == pytest.approx(((labels - 0.1) ** 2).mean())
    label = np.array([0.0, 0.0, 0.0, 100.0])
    number = measured(NUMBER, np.zeros(4), label, trivial=Trivial.learned(NUMBER, label))
    assert number["base_mae"] == pytest.approx(25.0), "the median, which is the best constant for absolute errors"
    assert number["base_rmse"] == pytest.approx(label.std()), "the mean, which is the best one for squares"
    unseen = Trivial.learned(CLASSES, np.array([0.0, 1.0] * 50))
    assert math.isfinite(measured(CLASSES, *classes(), trivial=unseen)["base_log_loss"])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(0, 2), st.booleans()), min_size=1, max_size=40))
def test_the_last_known_value_is_of_the_same_group_and_was_known_before(rows: list[tuple[int, int, int, bool]]) -> None:
    times = np.array([row[0] for row in rows], np.int64)
    known = times + np.array([row[1] for row in rows], np.int64)
    label = np.array([float(at) if row[3] else np.nan for at, row in enumerate(rows)])
    groups = np.array([str(row[2]) for row in rows], dtype=object)
    found = last_known(times, known, label, groups, np.ones(len(rows), bool))
    for at in range(len(rows)):
        before = [
            (known[i], times[i], i) for i in range(len(rows)) if rows[i][3] and groups[i] == groups[at] and known[i] < times[at]
        ]
        if not before:
            assert math.isnan(found[at])
        else:
            newest = max(before)[:2]
            assert (known[int(found[at])], times[int(found[at])]) == newest


def test_the_best_threshold_is_the_best_of_all() -> None:
    random = np.random.default_rng(1)
    scores = np.round(random.random(500), 2)
    labels = (random.random(500) < scores**2).astype(float)

    def f1(threshold: float) -> float:
        said = scores >= threshold
        return float(2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum()))

    assert f1(best_threshold(scores, labels)) == max(f1(value) for value in np.unique(scores))


def test_segments_need_rows_and_both_classes() -> None:
    random = np.random.default_rng(2)
    scores, labels = random.random(1000), random.integers(0, 2, 1000).astype(float)
    segment = np.array(["AA"] * 500 + ["B6"] * 400 + ["tiny"] * 10 + [None] * 90, dtype=object)
    labels[500:900] = 0
    found = by_segment(scores, labels, segment, 0.5, own=lambda mask: {"rows_seen": float(mask.sum())})
    assert set(found) == {"AA", "None"}
    assert found["AA"]["rows"] == found["AA"]["rows_seen"] == 500
    assert found["AA"]["auroc"] == pytest.approx(metrics(scores[:500], labels[:500], 0.5)["auroc"])


def test_over_time_is_by_day_or_by_equal_parts_and_forgets_no_row() -> None:
    scores, labels = binary(6000)
    for days, parts in ((7, 7), (200, 31)):
        times = np.sort(np.random.default_rng(3).integers(0, days * DAY, 6000))
        found = over_time(scores, labels, times, 0.5)
        assert len(found) == parts
        assert sum(part["rows"] for part in found) == 6000
        assert [part["start"] for part in found] == sorted(part["start"] for part in found)


def test_the_curve_sets_what_is_said_against_what_is_true() -> None:
    scores, labels = binary(20_000)
    for part in curve(BINARY, scores, labels):
        assert part["said"] == pytest.approx(part["true"], abs=0.05)
    assert sum(part["rows"] for part in curve(BINARY, scores, labels)) == 20_000
    number = curve(NUMBER, scores * 10, scores * 10)
    assert all(part["said"] == pytest.approx(part["true"]) for part in number)
    assert len({part["rows"] for part in number}) <= 2
    told = curve(QUANTILES, np.tile([0.1, 0.5, 0.9], (20_000, 1)), scores)
    assert [part["true"] for part in told] == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


# -- gains


@pytest.mark.parametrize("metric", COMPARED["binary"])
def test_a_gain_is_the_difference_of_the_metrics_and_positive_is_better(metric: str) -> None:
    scores, labels = binary()
    worse = np.clip(scores + np.random.default_rng(5).normal(0, 0.3, len(scores)), 0.001, 0.999)
    place = blocks(np.arange(len(labels)) * DAY // 100, DAY)
    found = gain(BINARY, metric, Answers(scores), Answers(worse), labels, place)
    ours, theirs = metrics(scores, labels, 0.5)[metric], metrics(worse, labels, 0.5)[metric]
    assert (found.ours, found.theirs) == pytest.approx((ours, theirs), abs=1e-4)
    assert found.estimate == pytest.approx(abs(ours - theirs), abs=1e-4)
    assert 0 < found.low < found.estimate < found.high
    back = gain(BINARY, metric, Answers(worse), Answers(scores), labels, place)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert gain(BINARY, metric, Answers(scores), Answers(worse), labels, place) == found, "one seed, one answer"


@pytest.mark.parametrize(
    ("objective", "metric"),
    [(o, m) for o in (CLASSES, NUMBER, QUANTILES) for m in COMPARED[o.kind]],
    ids=lambda v: getattr(v, "kind", v),
)
def test_other_objectives_gains_are_the_difference_of_the_metrics(objective: Objective, metric: str) -> None:
    random = np.random.default_rng(6)
    if objective.kind == "classes":
        ours, labels = classes()
        theirs = (ours + 0.3) / 1.9
        theirs[:800] = theirs[:800][:, ::-1]
    else:
        labels = random.normal(0, 3, 3000)
        spread = np.array([-3.8, 0.0, 3.8]) if objective.kind == "quantiles" else 0.0
        noise = random.normal(0, 1, 3000)
        ours, theirs = (
            (labels[:, None] + noise[:, None] + spread, labels[:, None] + 3 * noise[:, None] + 2 * spread)
            if objective.kind == "quantiles"
            else (labels + noise, labels + 3 * noise)
        )
    place = np.arange(3000) % 30
    found = gain(objective, metric, Answers(ours), Answers(theirs), labels, place)
    assert found.ours == pytest.approx(measured(objective, ours, labels)[metric], abs=1e-5)
    assert found.theirs == pytest.approx(measured(objective, theirs, labels)[metric], abs=1e-5)
    assert found.low > 0


def test_blocks_of_one_row_give_delongs_interval() -> None:
    scores, labels = binary()
    other = np.clip(scores + np.random.default_rng(7).normal(0, 0.2, len(scores)), 0, 1)
    (area, ours), (less, theirs) = auroc_influence(scores, labels), auroc_influence(other, labels)
    half = 1.6448536 * math.sqrt(float(np.square(ours - theirs).sum()))
    new = gain(BINARY, "auroc", Answers(scores), Answers(other), labels, np.arange(len(labels)))
    assert (new.estimate, new.low, new.high) == pytest.approx((area - less, area - less - half, area - less + half), abs=1e-4)


def test_the_bootstrap_of_a_mean_has_its_known_error() -> None:
    random = np.random.default_rng(8)
    ours = random.normal(0, 1, 5000)
    place = np.arange(5000) % 50
    found = gain(NUMBER, "mae", Answers(ours), Answers(np.zeros(5000)), np.zeros(5000), place)
    sums = np.array([np.abs(ours[place == at]).mean() for at in range(50)])
    assert found.error == pytest.approx(sums.std(ddof=1) / math.sqrt(50), rel=0.08)


def test_the_bounds_cover_the_truth_as_often_as_they_say_and_another_seed_draws_anew() -> None:
    random, above = np.random.default_rng(4), 0
    for _ in range(200):
        chance = random.uniform(0.1, 0.9, 300)
        label = (random.random(300) < chance).astype(float)
        a, b = np.clip(chance + random.normal(0, 0.1, (2, 300)), 0.01, 0.99)
        truth = float((chance * np.log(a / b) + (1 - chance) * np.log((1 - a) / (1 - b))).mean())
        found = gain(BINARY, "log_loss", Answers(a), Answers(b), label, np.arange(300) % 60)
        above += found.low <= truth
    assert 178 <= above <= 199, "95 % one-sided"
    args = (BINARY, "log_loss", Answers(a), Answers(b), label, np.arange(300) % 60)
    assert gain(*args, seed=1) != gain(*args)


def test_a_metric_of_ones_own_is_compared_like_cts() -> None:
    scores, labels = binary(2000)
    other = np.clip(scores + np.random.default_rng(9).normal(0, 0.2, len(scores)), 0, 1)
    amount = np.random.default_rng(10).gamma(2, 10, 2000)
    place = np.arange(2000) % 20

    def cost(scores: np.ndarray, labels: np.ndarray, columns: dict[str, np.ndarray]) -> float:
        return float(((scores - labels) ** 2 * columns["amount"]).mean())

    found = own_gain(cost, False, {"amount": amount}, Answers(scores), Answers(other), labels, place)
    assert found.estimate == pytest.approx(cost(other, labels, {"amount": amount}) - cost(scores, labels, {"amount": amount}))
    assert found.low > 0
    same = own_gain(lambda s, y, c: float(((s - y) ** 2).mean()), False, {}, Answers(scores), Answers(other), labels, place)
    built_in = gain(BINARY, "brier", Answers(scores), Answers(other), labels, place)
    assert same.error == pytest.approx(built_in.error, rel=0.25)


def test_a_users_metric_that_raises_or_gives_no_number_is_told() -> None:
    found, faults = own.values(
        {"bad": lambda s, y, c: c["amount"].sum(), "none": lambda s, y, c: math.nan, "good": lambda s, y, c: 3},
        np.ones(2),
        np.ones(2),
        {},
    )
    assert found == {"good": 3.0}
    assert "KeyError" in faults[0]
    assert "nan" in faults[1]


def test_short_spans_are_cut_into_ten_blocks_and_days_count_from_midnight() -> None:
    hours = np.arange(0, 30) * DAY // 24
    assert len(np.unique(blocks(hours, DAY))) == 10
    month = np.arange(0, 30 * 24) * DAY // 24
    assert np.array_equal(blocks(month, DAY), np.repeat(np.arange(30), 24))


def test_one_block_says_nothing() -> None:
    scores, labels = binary(100)
    for metric in ("auroc", "brier"):
        found = gain(BINARY, metric, Answers(scores), Answers(1 - scores), labels, np.zeros(100, np.int64))
        assert found.low == -math.inf
        assert found.worse_than(0.0) == 1.0
        assert found.to_json()["low"] is None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_never_below_the_p_value_and_keeps_the_order(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, found, strict=True))
    assert all(found[a] <= found[b] for a in range(len(found)) for b in range(len(found)) if p_values[a] < p_values[b])
    if p_values:
        assert min(found) == pytest.approx(min(1.0, min(p_values) * len(p_values)))
