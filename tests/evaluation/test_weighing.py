"""Weights of training rows: bounded, with mean 1, the same in any order, and larger where they are said to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ct
from ct import testing
from ct.errors import InvalidPipeline
from ct.evaluation import weighing
from ct.objectives import BINARY, Objective
from ct.roles import Weighed
from tests.control import shop

DAY = 86_400_000_000
SIZES = arrays(
    np.float64, st.integers(1, 60), elements=st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0]))
)


def weighed(count: int = 400, *, objective: Objective = BINARY, champion: bool = True, seed: int = 3) -> Weighed:
    random = np.random.default_rng(seed)
    scores = random.random(count) * 0.98 + 0.01
    label = (random.random(count) < scores).astype(np.float64)
    if objective.kind == "classes":
        scores = random.dirichlet(np.ones(3), count)
        label = random.integers(0, 3, count).astype(np.float64)
    if objective.kind == "quantiles":
        scores = np.sort(random.normal(size=(count, 3)), axis=1)
    if objective.kind in ("number", "quantiles"):
        label = random.normal(size=count)
    town = np.array(["Oslo", "Rome", None], dtype=object)[random.integers(0, 3, count)]
    return Weighed(
        times=random.integers(0, 90 * DAY, count),
        keys=random.integers(0, 1 << 60, count),
        segments={"town": town},
        features={"price": random.normal(size=count)},
        label=label,
        scores=scores if champion else None,
        drift={"town": {"Oslo": 0.4}},
        objective=objective,
    )


OBJECTIVES = [BINARY, Objective("classes", ("a", "b", "c")), Objective("number"), Objective("quantiles", (), (0.1, 0.5, 0.9))]
OURS = [ct.hard(), ct.hard(1.0, most=2), ct.unsure(), ct.drifted("town"), ct.recent("20d")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
@pytest.mark.parametrize("weigher", OURS, ids=lambda weigher: weigher.explain())
def test_every_weigher_keeps_the_contract_its_bound_and_the_mean(weigher: Any, objective: Objective) -> None:
    rows = weighed(objective=objective)
    if isinstance(weigher, weighing.Unsure) and objective.kind == "number":
        with pytest.raises(InvalidPipeline, match="a label that is a number"):
            weigher.weights(rows)
        return
    testing.weigher_contract(weigher, rows)
    found = weigher.weights(rows)
    assert found.mean() == pytest.approx(1.0, abs=1e-9)
    assert found.max() <= weigher.most + 1e-9
    assert np.ptp(found) > 0.05


@given(SIZES, st.floats(0.01, 1.0), st.floats(1.01, 20.0))
def test_mixing_bounds_and_keeps_the_mean(size: np.ndarray, share: float, most: float) -> None:
    found = weighing.mixed(size, share, most)
    assert found.mean() == pytest.approx(1.0, abs=1e-6)
    assert found.min() >= -1e-9
    assert found.max() <= 1 - share + share * most + 1e-6
    order = np.argsort(size, kind="stable")
    assert (np.diff(found[order]) >= -1e-9).all() or not (size > 0).all(), "a larger size never counts less"


def test_hard_and_unsure_rows_count_more() -> None:
    rows = replace(weighed(4), scores=np.array([0.9, 0.9, 0.5, 0.02]), label=np.array([1.0, 0.0, 1.0, 0.0]))
    sure_right, sure_wrong, torn, calm = ct.hard(most=3).weights(rows)
    assert sure_wrong > torn > sure_right > calm
    by_doubt = ct.unsure(most=3).weights(rows)
    assert by_doubt[2] == by_doubt.max()
    assert by_doubt[0] == pytest.approx(by_doubt[1]), "the label takes no part"
    # By hand: entropies of 0.5 (0.693), 0.9 (0.325) and 0.02 (0.098), half of all weight in proportion to them.
    entropy = np.array([0.32508, 0.32508, 0.69315, 0.09804])
    np.testing.assert_allclose(by_doubt, 0.5 + 0.5 * entropy / entropy.mean(), atol=1e-4)


def test_drifted_slices_count_more_in_proportion_to_their_effect() -> None:
    rows = weighed()
    found = ct.drifted("town", gain=2).weights(rows)
    oslo = rows.segments["town"] == "Oslo"
    assert len(np.unique(found[oslo])) == len(np.unique(found[~oslo])) == 1
    assert found[oslo][0] / found[~oslo][0] == pytest.approx(1 + 2 * 0.4)
    assert (ct.drifted("town").weights(replace(rows, drift={})) == 1).all()


def test_newer_rows_count_more_and_a_half_life_halves() -> None:
    rows = replace(weighed(3), times=np.array([0, 20 * DAY, 2000 * DAY]))
    shifted = replace(rows, times=np.array([100 * DAY, 120 * DAY, 140 * DAY]))
    old, middle, new = ct.recent("20d", least=0).weights(shifted)
    assert old / middle == pytest.approx(0.5)
    assert middle / new == pytest.approx(0.5)
    least = ct.recent("20d", least=0.25).weights(rows)
    assert least[0] / least[2] == pytest.approx(0.25)


def test_without_a_champion_every_row_counts_alike() -> None:
    rows = weighed(champion=False)
    for weigher in (ct.hard(), ct.unsure()):
        assert (weigher.weights(rows) == 1).all()


def test_weighers_multiply_and_what_is_no_weight_is_refused() -> None:
    rows = weighed()
    both = weighing.combined([ct.recent("20d"), ct.drifted("town")], rows)
    product = ct.recent("20d").weights(rows) * ct.drifted("town").weights(rows)
    np.testing.assert_allclose(both, product / product.mean())
    assert (weighing.combined([], rows) == 1).all()
    for wrong in (np.full(400, -1.0), np.full(400, np.nan), np.ones(3), np.array(["a"] * 400)):
        with pytest.raises(InvalidPipeline, match="mend weights"):
            weighing.combined([Own(wrong)], rows)
    with pytest.raises(InvalidPipeline, match="no row any weight"):
        weighing.combined([Own(np.zeros(400))], rows)


@dataclass(frozen=True)
class Own:
    """A user's weigher that says what it is told."""

    said: Any

    def segments(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Weighed) -> Any:
        return self.said

    def explain(self) -> str:
        return "as told"


@dataclass(frozen=True)
class ByPlace:
    """A weigher that must not be: it looks at where a row stands."""

    def segments(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Weighed) -> Any:
        return np.linspace(0.5, 1.5, len(rows.label))

    def explain(self) -> str:
        return "by place"


def test_the_contract_finds_weighers_that_look_at_the_order() -> None:
    with pytest.raises(AssertionError, match="another order"):
        testing.weigher_contract(ByPlace(), weighed())
    with pytest.raises(AssertionError, match="lacks a method"):
        testing.weigher_contract(object(), weighed())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ct.hard(0), "share above 0"),
        (lambda: ct.hard(most=1), "above 1"),
        (lambda: ct.unsure(2.0), "share above 0"),
        (lambda: ct.drifted(), "one or more segments"),
        (lambda: ct.drifted("town", gain=0), "above 0"),
        (lambda: ct.recent("soon"), "soon"),
        (lambda: ct.recent("20d", least=1), "to below 1"),
    ],
)
def test_a_wrong_declaration_says_so(make: Any, says: str) -> None:
    with pytest.raises(ct.CtError, match=says):
        make()


def test_a_pipeline_says_what_is_wrong_with_its_weighers() -> None:
    line = shop.pipeline()
    with pytest.raises(InvalidPipeline, match="weights holds 'recent'"):
        line.replace(weights=["recent"])
    with pytest.raises(InvalidPipeline, match=r"weights reads \['carrier'\], which is not in segments"):
        line.replace(weights=[ct.drifted("carrier")])
    with pytest.raises(InvalidPipeline, match="label_jump is 1"):
        line.replace(label_jump=1)
    weighted = line.replace(weights=[ct.recent("20d")])
    assert weighted.fingerprint() != line.fingerprint()
    assert weighted.feature_fingerprint() == line.feature_fingerprint()
