"""The fixed tree: the same sum, bit for bit, however the shards are owned. And real processes: the same bytes, however many they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ct.ids import canonical
from ct.training.declare import Torch
from ct.training.determinism import ENVIRONMENT, Tree, blocks, contract, owned, shard_seed


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


def test_shard_seeds_differ() -> None:
    seeds = {shard_seed(seed, step, shard) for seed in (0, 1) for step in range(50) for shard in range(8)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture(scope="module")
def worlds() -> dict[str, list[dict[str, Any]]]:
    """What `worlds.py` found: by number of processes, what each process found of each case."""
    command = [sys.executable, str(Path(__file__).parent / "worlds.py")]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "sparse"),
    [
        ("AdamW, clipped, averaged, weighed", ["own", "shared"]),
        ("SGD with momentum, linear, balanced classes", ["own", "shared"]),
        ("shards of different sizes", ["own", "shared"]),
        ("bfloat16", ["own", "shared"]),
        ("tables on the dense path", ["shared"]),
    ],
)
def test_any_number_of_processes_gives_the_same_bytes(
    worlds: dict[str, list[dict[str, Any]]], case: str, sparse: list[str]
) -> None:
    assert sorted(worlds) == ["1", "2", "3", "4", "8"]
    found = [process[case] for world in worlds.values() for process in world]
    assert len(found) == 18
    assert found[0]["sparse"] == sparse, "the path that this case is about"
    assert all(process == found[0] for process in found)


def test_a_run_of_three_goes_on_as_one_two_four_or_eight(worlds: dict[str, list[dict[str, Any]]]) -> None:
    whole = worlds["1"][0]["AdamW, clipped, averaged, weighed"]["state"]
    assert [worlds[world][0]["resumed"] for world in "1248"] == [whole] * 4


def test_a_worker_that_went_astray_is_named_with_its_tensor_on_every_worker(worlds: dict[str, list[dict[str, Any]]]) -> None:
    said = {process["parted"] for process in worlds["3"]}
    assert said == {"the workers' states differ: module.hidden.weight on rank 2"}


def slower(share: float) -> float:
    """A schedule."""
    return 1 - share


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": torch.optim.SGD},
        {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
        {"schedule": "linear"},
        {"schedule": slower},
        {"clip": 1.0},
        {"average": 0.99},
        {"precision": "bfloat16"},
        {"balanced": True},
        {"batch": 2048},
        {"shards": 4},
    ],
)
def test_whatever_changes_the_bytes_makes_another_contract(changed: dict[str, Any]) -> None:
    plain = contract(Torch("MLP"), "cpu")
    other = contract(Torch("MLP", **changed), "cpu")
    assert other["id"] != plain["id"]
    assert contract(Torch("MLP", **changed), "cpu") == other
    assert json.loads(canonical(other)) == other, "it is plain data"


def test_another_device_is_another_contract_that_says_how_its_kernels_run() -> None:
    found = contract(Torch("MLP"), "NVIDIA X")
    assert found["device"] == "NVIDIA X"
    assert found["algorithms"] == "deterministic"
    assert "algorithms" not in contract(Torch("MLP"), "cpu")


def test_arguments_of_an_optimizer_stand_in_the_contract_by_name() -> None:
    found = contract(Torch("MLP", optimizer=partial(torch.optim.SGD, momentum=0.9)), "cpu")
    assert "torch.optim.sgd.SGD" in canonical(found["optimizer"])
    assert found["optimizer"]["named"] == {"momentum": 0.9}
