"""The loop's parts that need no Ray: batch statistics, checkpoints, learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ct.features.encode import Shape
from ct.objectives import BINARY
from ct.training import building, checkpoint, determinism, learner, loop
from ct.training.data import TrainingSet
from ct.training.declare import Torch, pickled


class Normed(nn.Module):
    """A module with running statistics and dropout."""

    def __init__(self, numeric: int, cardinalities: list[int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(numeric)
        self.drop = nn.Dropout(0.2)
        self.layer = nn.Linear(numeric, 1)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        found: Tensor = self.layer(self.drop(self.norm(numeric))).squeeze(1)
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    numeric = random.normal(3.0, 2.0, size=(1000, 4)).astype(np.float32)
    label = (numeric[:, 0] > 3).astype(np.float32)
    return TrainingSet(numeric, np.zeros((1000, 0), np.int64), label, Shape(4, ())).save(tmp_path / "set")


def job(folder: Path, model: Torch, checkpoints: Path | None = None) -> loop.Job:
    return loop.Job(str(folder), *pickled(model), "same", checkpoints=str(checkpoints or ""))


def test_batch_statistics_are_the_mean_over_the_logical_shards(folder: Path) -> None:
    model = Torch(Normed, epochs=1, batch=1000, shards=8)
    made = loop.run(job(folder, model), determinism.Group())
    rows, digest = TrainingSet.open(folder)
    taken = loop.data.order(1000, digest, 0, 0)
    means = [rows.numeric[taken[1000 * at // 8 : 1000 * (at + 1) // 8]].mean(axis=0) for at in range(8)]
    np.testing.assert_allclose(made.weights["norm.running_mean"], 0.1 * np.mean(means, axis=0), rtol=1e-4)
    assert made.weights["norm.num_batches_tracked"] == 1


def test_the_first_gradient_is_that_of_the_mean_loss(folder: Path) -> None:
    class Plain(Normed):
        def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
            found: Tensor = self.layer(numeric).squeeze(1)
            return found

    model = Torch(Plain, batch=1000)
    rows, _ = TrainingSet.open(folder)
    numeric, category, label = (torch.from_numpy(np.array(v)) for v in (rows.numeric, rows.category, rows.label))
    plain = building.construct(model, Shape(4, ()))
    nn.functional.binary_cross_entropy_with_logits(plain(numeric, category), label).backward()
    made = learner.Learner(building.construct(model, Shape(4, ())), model, BINARY, "cpu", 10)
    parts = [slice(at * 125, (at + 1) * 125) for at in range(8)]
    shards = (learner.Shard(at, numeric[part], category[part], label[part], None) for at, part in enumerate(parts))
    made.step(0, shards, 1000, determinism.Group())
    moment = made.tensors()["exp_avg"] / 0.1
    expected = plain.layer.weight.grad.numpy().ravel()
    place = next(at for parameter, at in made._places if parameter is made.module.layer.weight)
    np.testing.assert_allclose(moment[place : place + 4], expected, rtol=1e-4)


def test_a_changed_checkpoint_is_passed_over(folder: Path, tmp_path: Path) -> None:
    model = Torch(Normed, epochs=3, batch=250)
    whole = loop.run(job(folder, model, tmp_path / "points"), determinism.Group())
    points = sorted((tmp_path / "points").glob("step-*"))
    assert len(points) == 2, "only the newest two are kept"
    data = bytearray((points[-1] / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (points[-1] / "state.safetensors").write_bytes(data)
    again = loop.run(job(folder, model, tmp_path / "points"), determinism.Group())
    assert again.resumed == 8
    assert checkpoint.digest(again.weights) == checkpoint.digest(whole.weights)


def test_torn_checkpoints_are_passed_over_and_swept_up(tmp_path: Path) -> None:
    torn = tmp_path / "step-000000007-aa"
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path, "k") is None
    checkpoint.save(tmp_path, checkpoint.Checkpoint("k", 9, {"a": np.ones(3)}, ()))
    found = checkpoint.newest(tmp_path, "k")
    assert found is not None
    assert found.step == 9
    assert not torn.exists()
    assert checkpoint.newest(tmp_path, "other") is None


def test_the_rate_rises_then_falls() -> None:
    rates = [learner.rate(step, 100, 1.0) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.01
