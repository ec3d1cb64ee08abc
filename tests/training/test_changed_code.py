"""A module that the user changes between two runs: the processes that are kept from the first must train the changed one in the second."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ct.features.encode import Shape
from ct.training import determinism, trainer, warm
from ct.training.data import TrainingSet
from ct.training.declare import Torch

pytestmark = pytest.mark.usefixtures("ray_local")

NET = """
from torch import nn
from kept_widths import WIDTH

class Net(nn.Module):
    def __init__(self, numeric, cardinalities):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(numeric, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, numeric, category):
        return self.layers(numeric).squeeze(1)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kept_net.py").write_text(NET)
    yield tmp_path
    for name in ("kept_net", "kept_widths"):
        sys.modules.pop(name, None)


def net(home: Path, width: int) -> Any:
    """The module's class after its neighbour has been changed, as who trains imports it anew."""
    (home / "kept_widths.py").write_text(f"WIDTH = {width}\n")
    importlib.invalidate_caches()
    for name in ("kept_net", "kept_widths"):
        sys.modules.pop(name, None)
    return importlib.import_module("kept_net").Net


def test_what_is_kept_from_a_run_uses_the_changed_module_in_the_next(home: Path) -> None:
    numeric = np.random.default_rng(0).normal(size=(1_000, 3)).astype(np.float32)
    label = (numeric[:, 0] > 0).astype(np.float32)
    folder = TrainingSet(numeric, np.zeros((1_000, 0), np.int64), label, Shape(3, ())).save(home / "set")
    processes = []
    for width in (4, 16, 16):
        model = Torch(net(home, width), epochs=1, batch=128)
        made = [
            trainer.train(folder, model, workers=workers, run=f"{width}-{workers}", storage=home, checkpoints=False)
            for workers in (0, 2)
        ]
        assert [one.weights["layers.0.weight"].shape for one in made] == [(width, 3)] * 2
        assert made[0].digest == made[1].digest
        processes.append(warm.call(os.getpid))
    assert len(set(processes)) == 1, "it was kept"


def test_the_order_of_a_set_is_the_same_in_every_process_that_trains() -> None:
    said = subprocess.check_output(
        [sys.executable, "-c", "print(hash('a name'))"], text=True, env={**os.environ, **determinism.ENVIRONMENT}
    )
    assert warm.call(hash, "a name") == int(said)
