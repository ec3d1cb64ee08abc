"""How often the gate promotes what it must not, counted over many simulated candidates. The declared rate is 1 - confidence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from ct.evaluation import gate
from ct.evaluation.evidence import CHAMPION, Evaluation, Evidence, SliceGain
from ct.evaluation.paired import Answers, blocks, gain
from ct.objectives import BINARY, Objective

DAY = 86_400_000_000
NUMBER = Objective("number")
ALPHA = 0.05


def most(tries: int, rate: float = ALPHA) -> int:
    """So many wrong promotions at most in `tries`, if the true rate is `rate`: exceeded by chance once in a thousand."""
    return int(binom.ppf(0.999, tries, rate))


def world(random: np.random.Generator, days: int, rows: int, clustered: float) -> tuple[Answers, Answers, NDArray, NDArray]:
    """Two exchangeable versions: each adds its own error to the truth's logit, one a row and one that a whole day shares."""
    day = np.repeat(np.arange(days), rows)
    truth = random.normal(0, 1.5, len(day))
    label = (random.random(len(day)) < 1 / (1 + np.exp(-truth))).astype(float)
    versions = []
    for _ in range(2):
        # On a bad day a version knows nothing: all its rows of that day are alike wrong.
        bad = np.abs(random.normal(0, clustered, days))[day]
        versions.append(Answers(1 / (1 + np.exp(-(truth + (0.7 + bad) * random.normal(0, 1, len(day)))))))
    return versions[0], versions[1], label, day * DAY


def promoted(metric: str, days: int, clustered: float, *, tries: int, length: int = DAY, rows: int = 60) -> int:
    """How many of `tries` candidates that are no better than the champion are promoted as better by more than nothing."""
    random, count = np.random.default_rng(days), 0
    declared = gate.Gate(beats=gate.better(metric), floors=[gate.at_least("auroc", 0.0)])
    for _ in range(tries):
        ours, theirs, label, times = world(random, days, rows, clustered)
        found = gain(BINARY, metric, ours, theirs, label, blocks(times, length))
        here = Evaluation({"auroc": 0.5, "log_loss": 0.5, "base_log_loss": 0.6}, len(label))
        count += gate.decide(declared, Evidence(here, here, {(metric, CHAMPION): found})).decision == "pass"
    return count


@pytest.mark.parametrize("metric", ["auroc", "log_loss", "brier", "ece"])
@pytest.mark.parametrize("clustered", [0.0, 3.0], ids=["independent rows", "days with weather"])
def test_a_candidate_that_is_no_better_is_promoted_as_seldom_as_declared(metric: str, clustered: float) -> None:
    tries = 600
    assert promoted(metric, 28, clustered, tries=tries) <= most(tries)


@pytest.mark.parametrize("metric", ["auroc", "log_loss"])
def test_a_short_window_of_ten_blocks_keeps_the_rate(metric: str) -> None:
    tries = 600
    assert promoted(metric, 10, 3.0, tries=tries) <= most(tries)


def test_blocks_of_one_row_delongs_interval_promote_too_often_where_days_have_weather() -> None:
    random, tries, wrong = np.random.default_rng(1), 400, 0
    for _ in range(tries):
        ours, theirs, label, _ = world(random, 28, 60, 3.0)
        wrong += gain(BINARY, "auroc", ours, theirs, label, np.arange(len(label))).low >= 0
    assert wrong > most(tries), "if this holds, longer blocks would not be needed"


def test_independent_rows_may_be_dealt_into_blocks() -> None:
    tries = 150
    assert promoted("auroc", 28, 0.0, tries=tries, length=0) <= most(tries)
    assert promoted("brier", 28, 0.0, tries=tries, length=0) <= most(tries)


def errors(
    random: np.random.Generator, worse: float, weather: float, days: int = 28, rows: int = 50
) -> tuple[Answers, Answers, NDArray]:
    """A number's two versions, of which the first is off by exactly `worse` more on average, with days that shift the difference."""
    n = days * rows
    shift = np.repeat(random.normal(0, weather, days), rows)
    ours = 10 + worse + shift + random.normal(0, 1, n)
    return Answers(ours), Answers(np.full(n, 10.0)), np.zeros(n)


@pytest.mark.parametrize("weather", [0.0, 0.5])
def test_at_the_margin_itself_the_rate_is_the_declared_one(weather: float) -> None:
    """The hardest case: a candidate that is worse by exactly what is still allowed. It passes about as often as declared, not more."""
    random, tries, passed = np.random.default_rng(3), 500, 0
    place = blocks(np.repeat(np.arange(28), 50) * DAY, DAY)
    for _ in range(tries):
        ours, theirs, label = errors(random, 0.2, weather)
        passed += gain(NUMBER, "mae", ours, theirs, label, place).low >= -0.2
    assert passed <= most(tries)
    assert passed >= binom.ppf(0.001, tries, 0.02), "the interval is not so wide that nothing could pass"


def test_worse_candidates_hardly_ever_pass_and_better_ones_mostly_do() -> None:
    random, tries = np.random.default_rng(4), 200
    place = blocks(np.repeat(np.arange(28), 50) * DAY, DAY)

    def rate(worse: float) -> float:
        found = [gain(NUMBER, "mae", *errors(random, worse, 0.3), place).low >= -0.2 for _ in range(tries)]
        return float(np.mean(found))

    assert rate(0.6) <= 0.005
    assert rate(-0.1) >= 0.9


def test_several_comparisons_at_once_promote_no_more_often_than_one() -> None:
    """All must hold, so the rate of the weakest is the rate of all; nothing needs to be corrected."""
    random, tries, wrong = np.random.default_rng(5), 400, 0
    for _ in range(tries):
        ours, theirs, label, times = world(random, 28, 40, 2.0)
        place = blocks(times, DAY)
        wrong += all(gain(BINARY, name, ours, theirs, label, place).low >= 0 for name in ("auroc", "log_loss", "brier"))
    assert wrong <= most(tries)


def test_the_slice_guard_stops_a_good_candidate_no_more_often_than_declared() -> None:
    """Twenty slices, no version worse anywhere: even one alarm is a false one. Without the correction they come far too often."""
    random, tries, alarms, plain = np.random.default_rng(6), 100, 0, 0
    guard = gate.slices(margin=0.0)
    here = Evaluation({}, 1)
    for _ in range(tries):
        slices = []
        for at in range(20):
            ours, theirs, label, times = world(random, 14, 20, 1.0)
            slices.append(
                SliceGain("carrier", str(at), len(label), gain(BINARY, "brier", ours, theirs, label, blocks(times, DAY)))
            )
        found = guard.by_metric("brier").judge(Evidence(here, here, slices=slices), 1 - ALPHA)
        alarms += found.outcome == "fail"
        plain += any(item.gain is not None and item.gain.worse_than(0.0) <= ALPHA for item in slices)
    assert alarms <= most(tries)
    assert plain > most(tries)
