"""Training rows: their order, their weights, the shards of a step, and what is wrong with a set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.objectives import BINARY, Objective
from ct.training import data
from ct.training.data import TrainingSet, batch_of, order
from ct.training.declare import Torch
from ct.training.determinism import Group
from ct.training.feed import Feed

NUMBER, THREE = Objective("number"), Objective("classes", ("a", "b", "c"))


def rows(count: int = 1000, rate: float = 0.3, weight: np.ndarray | None = None) -> TrainingSet:
    random = np.random.default_rng(5)
    numeric = random.normal(size=(count, 4)).astype(np.float32)
    category = random.integers(0, 9, (count, 2))
    return TrainingSet(numeric, category, (random.random(count) < rate).astype(np.float32), Shape(4, (9, 9)), weight)


def test_the_row_order_is_a_permutation_that_its_arguments_decide() -> None:
    first = order(1000, "a", 1, 0)
    assert sorted(first) == list(range(1000))
    assert (first == order(1000, "a", 1, 0)).all()
    for other in (order(1000, "b", 1, 0), order(1000, "a", 2, 0), order(1000, "a", 1, 1)):
        assert (first != other).any()


@pytest.mark.parametrize(("count", "batch", "expected"), [(200, 1024, 200), (5000, 1024, 1024)])
def test_few_rows_make_a_smaller_batch(count: int, batch: int, expected: int) -> None:
    assert batch_of(count, batch) == expected


@given(st.integers(1, 8), st.integers(100, 700), st.integers(0, 40))
def test_the_workers_shards_are_a_steps_rows_in_order_of_the_epoch(world: int, count: int, step: int) -> None:
    given_rows, model = rows(count), Torch("MLP", batch=96, shards=8, seed=3)
    feeds = [Feed(given_rows, "digest", model, BINARY, Group(rank, world)) for rank in range(world)]
    shards = [shard for feed in feeds for shard in feed.shards(step)]
    assert [shard.place for shard in shards] == list(range(8))
    epoch, at = divmod(step, feeds[0].steps)
    taken = order(count, "digest", 3, epoch)[at * 96 : (at + 1) * 96]
    assert torch.equal(torch.cat([shard.numeric for shard in shards]), torch.from_numpy(given_rows.numeric[taken]))
    assert torch.equal(torch.cat([shard.category for shard in shards]), torch.from_numpy(given_rows.category[taken]))
    assert torch.equal(torch.cat([shard.label for shard in shards]), torch.from_numpy(given_rows.label[taken]))


def test_a_feed_reads_a_saved_set_with_its_weights(tmp_path: Path) -> None:
    weight = np.arange(1000, dtype=np.float32)
    made = rows(weight=weight)
    made.save(tmp_path)
    opened, digest = TrainingSet.open(tmp_path)
    assert digest == made.digest()
    shard = next(Feed(opened, digest, Torch("MLP", batch=1000, shards=1), BINARY, Group()).shards(0))
    assert shard.weight is not None
    assert torch.equal(shard.weight, torch.from_numpy(weight[order(1000, digest, 0, 0)]))


def test_balanced_classes_count_alike_and_rows_keep_their_own_weights() -> None:
    plain = rows(rate=0.1)
    found = data.balanced(plain, BINARY)
    assert found[plain.label == 1].sum() == pytest.approx(found[plain.label == 0].sum(), rel=1e-4)
    assert found.mean() == pytest.approx(1.0)
    weight = np.linspace(0, 2, 1000).astype(np.float32)
    weighed = data.balanced(rows(rate=0.1, weight=weight), BINARY)
    assert weighed[plain.label == 1].sum() == pytest.approx(weighed[plain.label == 0].sum(), rel=1e-4)
    ratios = weighed[plain.label == 1][1:] / weight[plain.label == 1][1:]
    assert ratios == pytest.approx(np.full(len(ratios), ratios[0]), rel=1e-4)


def test_a_class_that_is_absent_does_not_count() -> None:
    label = np.array([0, 0, 0, 2] * 50, np.float32)
    found = data.balanced(dataclasses.replace(rows(200), label=label), THREE)
    assert np.isfinite(found).all()
    assert found[label == 2].sum() == pytest.approx(found[label == 0].sum())


def test_numbers_cannot_be_balanced() -> None:
    with pytest.raises(TrainingFailed, match="balanced=True for an objective of kind 'number'"):
        data.balanced(rows(), NUMBER)


def test_a_good_set_has_no_faults() -> None:
    assert data.faults(rows(), BINARY) == []


def changed(**fields: np.ndarray) -> TrainingSet:
    return dataclasses.replace(rows(), **fields)


def spoiled(values: np.ndarray, at: object, value: float) -> np.ndarray:
    made = values.copy()
    made[at] = value  # type: ignore[index]
    return made


GOOD = rows()


@pytest.mark.parametrize(
    ("made", "objective", "said"),
    [
        (rows(60), BINARY, "60 rows to train on, at least 100 are needed"),
        (changed(label=np.ones(1000, np.float32)), BINARY, "every label is 1: there is nothing to learn"),
        (changed(label=np.full(1000, 2.5, np.float32)), NUMBER, "every label is 2.5: there is nothing to learn"),
        (changed(label=spoiled(GOOD.label, slice(0, 3), np.nan)), BINARY, "3 labels are no numbers"),
        (changed(label=spoiled(GOOD.label, 0, 2.0)), BINARY, "labels from 0 to 2, where classes are 0 to 1"),
        (changed(numeric=spoiled(GOOD.numeric, (5, 1), np.inf)), BINARY, "1 numeric columns hold values that are no numbers"),
        (
            changed(numeric=spoiled(GOOD.numeric, (slice(None), [0, 1, 3]), 0.0)),
            BINARY,
            "3 of 4 numeric columns have one value only",
        ),
        (rows(weight=np.full(1000, -1, np.float32)), BINARY, "weights below 0, all 0, or no numbers"),
        (rows(weight=np.zeros(1000, np.float32)), BINARY, "weights below 0, all 0, or no numbers"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(made: TrainingSet, objective: Objective, said: str) -> None:
    assert data.faults(made, objective) == [said]


def test_half_of_the_columns_may_be_dead() -> None:
    assert data.faults(changed(numeric=spoiled(GOOD.numeric, (slice(None), [0, 1]), 0.0)), BINARY) == []
