"""A sweep on real Ray Tune: fixed trials, told as they end, never run twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ct.features.encode import Shape
from ct.ids import canonical, sha256
from ct.training.data import TrainingSet
from ct.training.declare import Search, Torch
from ct.training.sweep import Trial, sweep
from delay_model import DelayNet


def save(folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    numeric = random.normal(size=(2000, 4)).astype(np.float32)
    label = (numeric[:, 0] > 0).astype(np.float32)
    return TrainingSet(numeric, random.integers(0, 5, (2000, 1)), label, Shape(4, (5,))).save(folder)


@pytest.mark.usefixtures("ray_local")
def test_a_sweep_tells_its_trials_and_goes_on_where_it_was(tmp_path: Path) -> None:
    train, judge = save(tmp_path / "train", 1), save(tmp_path / "judge", 2)
    model = Torch(DelayNet, epochs=2, batch=256, lr=Search(choices=[1e-2, 1e-5, 1e30]))
    told: list[Trial] = []
    found = sweep(train, judge, model, trials=3, seed=1, parallel=1, on_trial=told.append, done={})
    by_rate = {trial.params["lr"]: trial for trial in found}
    assert {trial.params["lr"] for trial in told} == {1e-2, 1e-5, 1e30}
    assert by_rate[1e30].state == "failed"
    assert by_rate[1e-2].metric < by_rate[1e-5].metric < 1.0

    done = {sha256(canonical(dict(trial.params))): trial.metric for trial in found}
    told.clear()
    assert sweep(train, judge, model, trials=3, seed=1, parallel=1, on_trial=told.append, done=done) == found
    assert told == []
