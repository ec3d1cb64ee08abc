"""The loop in this process, without Ray: batch statistics, checkpoints, resuming in the middle of an epoch, early stopping, lost runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ct.features.encode import Shape
from ct.objectives import BINARY
from ct.training import building, checkpoint, data, determinism, learner, loop
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


def job(folder: Path, model: Torch, checkpoints: Path | None = None, **more: Any) -> loop.Job:
    return loop.Job(str(folder), *pickled(model), "same", checkpoints=str(checkpoints or ""), **more)


class Ended(Exception):
    """Stands for a kill: the loop is left at once."""


def end_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    plain = learner.Learner.step

    def stepping(self: Any, at: int, *args: Any) -> Any:
        if at == step:
            raise Ended
        return plain(self, at, *args)

    monkeypatch.setattr(learner.Learner, "step", stepping)


def test_batch_statistics_are_the_mean_over_the_logical_shards(folder: Path) -> None:
    model = Torch(Normed, epochs=1, batch=1000, shards=8)
    made = loop.run(job(folder, model), determinism.Group())
    rows, digest = TrainingSet.open(folder)
    taken = data.order(1000, digest, 0, 0)
    means = [rows.numeric[taken[1000 * at // 8 : 1000 * (at + 1) // 8]].mean(axis=0) for at in range(8)]
    np.testing.assert_allclose(made.weights["norm.running_mean"], 0.1 * np.mean(means, axis=0), rtol=1e-4)
    assert made.weights["norm.num_batches_tracked"] == 1


def test_a_step_may_have_fewer_rows_than_shards(tmp_path: Path) -> None:
    numeric = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    category = np.arange(100).reshape(100, 1)  # more ids than rows a shard: its table takes the sparse path
    label = (numeric[:, 0] > 0).astype(np.float32)
    few = TrainingSet(numeric, category, label, Shape(3, (100,))).save(tmp_path / "few")
    one, many = (
        loop.run(
            job(few, Torch("MLP", epochs=4, batch=1024, shards=shards, lr=0.03, options={"dropout": 0.0})), determinism.Group()
        )
        for shards in (1, 128)
    )
    losses = [[entry["loss"] for entry in made.history] for made in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1][-1] < losses[1][0]


def test_a_changed_checkpoint_is_passed_over(folder: Path, tmp_path: Path) -> None:
    model = Torch(Normed, epochs=3, batch=250)
    whole = loop.run(job(folder, model, tmp_path / "points"), determinism.Group())
    points = sorted((tmp_path / "points").glob("attempt-*/step-*"))
    assert len(points) == 2, "only the newest two are kept"
    data = bytearray((points[-1] / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (points[-1] / "state.safetensors").write_bytes(data)
    again = loop.run(job(folder, model, tmp_path / "points"), determinism.Group())
    assert again.resumed == 8
    assert "step-000000000012 cannot be used: its tensors have changed" in again.notes[0]
    assert again.history == whole.history
    assert checkpoint.digest(again.weights) == checkpoint.digest(whole.weights)


def test_it_goes_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Torch(Normed, epochs=3, batch=64, average=0.9, clip=0.1)
    whole = loop.run(job(folder, model), determinism.Group())
    with monkeypatch.context() as ended:
        end_at(ended, 24)
        with pytest.raises(Ended):
            loop.run(job(folder, model, tmp_path / "points", every_steps=7), determinism.Group())
    again = loop.run(job(folder, model, tmp_path / "points", every_steps=5), determinism.Group())
    assert again.resumed == 21, "an epoch has 15 steps"
    assert checkpoint.digest(again.weights) == checkpoint.digest(whole.weights)
    assert again.history == whole.history


def test_seconds_make_checkpoints_too_and_change_nothing(folder: Path, tmp_path: Path) -> None:
    model = Torch(Normed, epochs=1, batch=64)
    whole = loop.run(job(folder, model), determinism.Group())
    made = loop.run(job(folder, model, tmp_path / "points", every_s=1e-9), determinism.Group())
    assert checkpoint.digest(made.weights) == checkpoint.digest(whole.weights)
    steps = [int(path.name[5:]) for path in (tmp_path / "points").glob("attempt-*/step-*")]
    assert len(steps) == 2
    assert min(steps) < 15 == max(steps)


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    numeric = random.normal(3.0, 2.0, size=(203, 4)).astype(np.float32)
    label = (numeric[:, 0] + random.normal(0, 1.0, 203) > 3).astype(np.float32)
    return TrainingSet(numeric, np.zeros((203, 0), np.int64), label, Shape(4, ())).save(tmp_path / "stop")


WILD = Torch(Normed, epochs=12, batch=250, lr=0.9, schedule="constant", patience=2, seed=1)


def test_the_best_epoch_is_the_model_and_patience_ends_the_run(folder: Path, aside: Path) -> None:
    made = loop.run(job(folder, WILD, stop=str(aside)), determinism.Group())
    losses = [entry["stop_loss"] for entry in made.history]
    assert made.best == int(np.argmin(losses))
    assert len(losses) == made.best + 1 + WILD.patience < WILD.epochs
    without = loop.run(job(folder, replace(WILD, epochs=made.best + 1, patience=0)), determinism.Group())
    assert checkpoint.digest(made.weights) == checkpoint.digest(without.weights)
    rows, _ = TrainingSet.open(aside)
    module = building.loaded(WILD, rows.shape, BINARY, made.weights)
    with torch.no_grad():
        raw = module(torch.from_numpy(np.array(rows.numeric)), torch.from_numpy(np.array(rows.category)))
    mean = nn.functional.binary_cross_entropy_with_logits(raw.double(), torch.from_numpy(np.array(rows.label)).double())
    assert losses[made.best] == pytest.approx(float(mean), rel=1e-6)


@pytest.mark.parametrize("step", [3, 13, 17])
def test_early_stopping_survives_a_kill(
    folder: Path, aside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = loop.run(job(folder, WILD, stop=str(aside)), determinism.Group())
    points = tmp_path / "points"
    with monkeypatch.context() as ended:
        end_at(ended, step)
        if step < 4 * len(whole.history):
            with pytest.raises(Ended):
                loop.run(job(folder, WILD, points, stop=str(aside), every_steps=3), determinism.Group())
    again = loop.run(job(folder, WILD, points, stop=str(aside)), determinism.Group())
    finished = loop.run(job(folder, WILD, points, stop=str(aside)), determinism.Group())
    for made in (again, finished):
        assert checkpoint.digest(made.weights) == checkpoint.digest(whole.weights)
        assert (made.history, made.best) == (whole.history, whole.best)
    assert finished.resumed == 4 * len(whole.history)


def test_a_lost_run_says_where_and_why(folder: Path, tmp_path: Path) -> None:
    rows, _ = TrainingSet.open(folder)
    numeric = np.array(rows.numeric)
    numeric[777, 2] = np.nan
    broken = replace(rows, numeric=numeric).save(tmp_path / "broken")
    made = loop.run(job(broken, Torch(Normed, epochs=2, batch=100)), determinism.Group())
    assert made.weights == {}
    _, digest = TrainingSet.open(broken)
    at = int(np.flatnonzero(data.order(1000, digest, 0, 0) == 777)[0]) // 100
    assert made.diverged_at == at
    assert made.fault == "its loss is nan, no number"


def test_an_explosion_ends_the_run(folder: Path) -> None:
    wild = Torch(Normed, epochs=30, batch=64, lr=1e6, schedule="constant", optimizer=torch.optim.SGD)
    made = loop.run(job(folder, wild), determinism.Group())
    assert made.weights == {}
    assert made.fault
    assert 0 < made.diverged_at < 15 * 30
