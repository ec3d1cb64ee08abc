"""A shadow beside stable on the same rows: what is found, what is never found, and how few labels it takes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

import ct
from ct.evaluation.stats import auroc_influence
from ct.ids import canonical, describe
from ct.objectives import BINARY, Objective
from ct.rollout.paired import Paired, compare
from ct.rollout.verdict import judge

LOOKS = np.unique(np.geomspace(200, 8000, 25).astype(int))


def scored(rng: np.random.Generator, n: int, drop: float, alike: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stable's and the candidate's scores of n rows: AUROC 0.80, the candidate's less by `drop`."""
    label = (rng.random(n) < 0.3).astype(float)
    noise = rng.normal(size=n)
    other = alike * noise + np.sqrt(1 - alike**2) * rng.normal(size=n)
    apart = [np.sqrt(2) * norm.ppf(area) for area in (0.80, 0.80 - drop)]
    return noise + apart[0] * label, other + apart[1] * label, label


def test_the_difference_is_delong_s() -> None:
    stable, candidate, label = scored(np.random.default_rng(3), 3000, 0.02)
    found = compare(BINARY, stable, candidate, label, alpha=0.05)
    (ours, pull), (theirs, pulled) = auroc_influence(candidate, label), auroc_influence(stable, label)
    half = 1.96 * float(np.sqrt(np.square(pull - pulled).sum()))
    assert found.difference == pytest.approx(ours - theirs)
    assert found.low < found.difference - half < found.difference + half < found.high, "bounds for every look are wider"


def test_an_equal_shadow_is_seldom_called_worse_and_a_worse_one_soon() -> None:
    rng, wrongly, needed = np.random.default_rng(7), 0, []
    for _ in range(50):
        equal, worse = scored(rng, LOOKS[-1], 0.0), scored(rng, LOOKS[-1], 0.02)
        wrongly += any(compare(BINARY, *(part[:n] for part in equal), alpha=0.05).harmful for n in LOOKS)
        needed.append(next((n for n in LOOKS if compare(BINARY, *(part[:n] for part in worse), alpha=0.05).harmful), 10**9))
    assert wrongly <= 7  # 5 % of 50, and three standard errors
    assert np.median(needed) < 1500


def test_other_labels_are_compared_by_their_own_loss() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal(size=2000)
    near, far = truth + rng.normal(0, 1, 2000), truth + rng.normal(0, 1.5, 2000)
    found = compare(Objective("number"), near, far, truth, alpha=0.05)
    assert (found.metric, found.harmful) == ("mae", True)
    assert compare(Objective("number"), far, near, truth, alpha=0.05).passes(0.01)


def test_without_labels_nothing_is_said() -> None:
    for label in (np.full(5, np.nan), np.ones(5)):
        found = compare(BINARY, np.arange(5.0), np.arange(5.0), label, alpha=0.05)
        assert not found.harmful
        assert not found.passes(0.5)
        assert canonical(describe(found))


def test_a_shadow_passes_holds_or_is_rolled_back() -> None:
    def look(plan: ct.Shadow, found: Paired | None, elapsed: float = 1.0) -> str:
        return judge(plan, (), step=0, elapsed_s=elapsed, paired=found).decision

    same, worse = Paired("auroc", 900, 0.0, -0.005, 0.005), Paired("auroc", 900, -0.02, -0.03, -0.01)
    assert look(ct.Shadow(within=0.01), same) == "promote"
    assert look(ct.Shadow(within=0.001), same) == "continue"
    assert look(ct.Shadow(within=0.01, min_labels=1000), same) == "continue"
    assert look(ct.Shadow(within=0.01), None, elapsed=4000) == "hold"
    assert look(ct.Shadow(), same, elapsed=4000) == "hold", "without `within` a person decides"
    assert look(ct.Shadow(), worse) == "roll_back"
    assert ct.Shadow(within=-1.0, min_labels=0).validate()
