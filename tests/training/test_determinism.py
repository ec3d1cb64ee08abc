"""The fixed tree: the same sum, bit for bit, however the shards are owned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ct.training.data import batch_of, order
from ct.training.determinism import Tree, blocks, owned, shard_seed


def reference(values: list[np.ndarray]) -> np.ndarray:
    while len(values) > 1:
        values = [left + right for left, right in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@given(st.integers(0, 5), st.data())
def test_any_workers_in_any_order_of_arrival_add_the_same_tree(power: int, data: st.DataObject) -> None:
    shards = 2**power
    workers = data.draw(st.integers(1, shards))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    leaves = [(random.normal(size=7) * 10.0 ** random.integers(-8, 8, 7)).astype(np.float32) for _ in range(shards)]
    expected = reference(leaves)
    arrived = []
    for worker in range(workers):
        mine = owned(shards, worker, workers)
        tree = Tree()
        for shard in data.draw(st.permutations(list(mine))):
            tree.add((shard, 1), torch.from_numpy(leaves[shard].copy()))
        assert sorted(tree.nodes) == blocks(mine)
        arrived += list(tree.nodes.items())
    whole = Tree()
    for block, value in data.draw(st.permutations(arrived)):
        whole.add(block, value)
    assert whole.root(shards).numpy().tobytes() == expected.tobytes()


@given(st.integers(1, 64), st.data())
def test_every_shard_has_one_owner(shards: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, shards))
    found = [shard for worker in range(workers) for shard in owned(shards, worker, workers)]
    assert found == list(range(shards))
    assert all(len(owned(shards, worker, workers)) > 0 for worker in range(workers))


def test_the_row_order_is_a_permutation_that_its_arguments_decide() -> None:
    first = order(1000, "a", 1, 0)
    assert sorted(first) == list(range(1000))
    assert (first == order(1000, "a", 1, 0)).all()
    for other in (order(1000, "b", 1, 0), order(1000, "a", 2, 0), order(1000, "a", 1, 1)):
        assert (first != other).any()


@pytest.mark.parametrize(("rows", "batch", "expected"), [(200, 1024, 200), (5000, 1024, 1024)])
def test_few_rows_make_a_smaller_batch(rows: int, batch: int, expected: int) -> None:
    assert batch_of(rows, batch) == expected


def test_shard_seeds_differ() -> None:
    seeds = {shard_seed(seed, step, shard) for seed in (0, 1) for step in range(50) for shard in range(8)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
