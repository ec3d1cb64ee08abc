"""Training on real Ray: the same bytes on any number of workers, and after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.training import trainer, warm
from ct.training.data import TrainingSet
from ct.training.declare import Search, Torch
from delay_model import DelayNet

pytestmark = pytest.mark.usefixtures("ray_local")

MODEL = Torch(DelayNet, epochs=12, batch=512, lr=3e-3, seed=3)

DRIVER = """
import sys
from pathlib import Path
import ray
from delay_model import DelayNet
from ct.training import trainer
from ct.training.declare import Torch
if __name__ == "__main__":
    ray.init(address=sys.argv[1], namespace="ct", log_to_driver=False)
    model = Torch(DelayNet, epochs=12, batch=512, lr=3e-3, seed=3)
    trainer.train(Path(sys.argv[2]), model, run="killed", storage=Path(sys.argv[3]))
"""


def rows(count: int = 24_000, *, broken: bool = False) -> TrainingSet:
    random = np.random.default_rng(5)
    numeric = random.normal(size=(count, 12)).astype(np.float32)
    cardinalities = (16, 5, 300)
    category = np.stack([random.integers(0, size, count) for size in cardinalities], axis=1)
    odds = numeric[:, 0] + 0.5 * (category[:, 0] > 8)
    label = (random.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    if broken:
        numeric[17, 3] = np.nan
    return TrainingSet(numeric, category, label, Shape(12, cardinalities))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows().save(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> trainer.Trained:
    return trainer.train(folder, MODEL, run="undisturbed", storage=tmp_path_factory.mktemp("storage"))


def test_it_learns_and_says_how(undisturbed: trainer.Trained) -> None:
    losses = [epoch["loss"] for epoch in undisturbed.history]
    assert len(losses) == 12
    assert losses[-1] < 0.63 < losses[0]
    assert undisturbed.resumed == 0
    assert undisturbed.contract["threads"] == 1
    assert undisturbed.contract["shards"] == 8
    assert set(undisturbed.weights) >= {"embeddings.0.weight", "layers.0.weight", "layers.0.bias"}


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(
    folder: Path, tmp_path: Path, undisturbed: trainer.Trained, workers: int
) -> None:
    seen: list[int] = []
    made = trainer.train(
        folder, MODEL, workers=workers, run="group", storage=tmp_path, on_progress=lambda line: seen.append(line["epoch"])
    )
    assert made.digest == undisturbed.digest
    assert made.contract == undisturbed.contract
    assert seen == list(range(12))


def test_a_killed_driver_is_resumed_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, undisturbed: trainer.Trained
) -> None:
    import ray

    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.modules["delay_model"].__file__ or "").parent)}
    driver = subprocess.Popen([sys.executable, str(script), address, str(folder), str(tmp_path / "storage")], env=environment)
    try:
        _wait_for(lambda: list((tmp_path / "storage").glob("killed/checkpoints/*/manifest.json")), driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    made = trainer.train(folder, MODEL, run="killed", storage=tmp_path / "storage")
    assert made.resumed > 0
    assert made.digest == undisturbed.digest
    assert made.history == undisturbed.history


def test_a_killed_training_process_goes_on_within_the_call(folder: Path, tmp_path: Path, undisturbed: trainer.Trained) -> None:
    killed: list[int] = []

    def kill_once(line: object) -> None:
        if not killed:
            killed.append(process)
            os.kill(process, signal.SIGKILL)

    process = warm.call(os.getpid)
    made = trainer.train(folder, MODEL, run="hit", storage=tmp_path, on_progress=kill_once)
    assert killed
    assert warm.call(os.getpid) != process
    assert made.resumed > 0
    assert made.digest == undisturbed.digest


def test_a_finished_run_called_again_gives_the_same_at_once(folder: Path, tmp_path: Path) -> None:
    short = replace(MODEL, epochs=1)
    first = trainer.train(folder, short, run="twice", storage=tmp_path)
    second = trainer.train(folder, short, run="twice", storage=tmp_path)
    assert second.resumed > 0
    assert second.digest == first.digest
    other = trainer.train(folder, replace(short, seed=4), run="twice", storage=tmp_path)
    assert other.resumed == 0, "a checkpoint of another seed must not be continued"
    assert other.digest != first.digest


def test_odd_values_end_the_run_with_an_error(tmp_path: Path) -> None:
    rows(2_000, broken=True).save(tmp_path / "set")
    with pytest.raises(TrainingFailed, match="diverged at step"):
        trainer.train(tmp_path / "set", replace(MODEL, epochs=1), run="odd", storage=tmp_path)


def test_an_error_inside_the_users_module_is_reported(tmp_path: Path) -> None:
    odd = rows(2_000)
    odd.category[1_000, 2] = 10**6
    odd.save(tmp_path / "set")
    with pytest.raises(TrainingFailed, match="IndexError: index out of range"):
        trainer.train(tmp_path / "set", replace(MODEL, epochs=1), run="odd", storage=tmp_path)


def test_a_wrong_option_names_the_users_error(folder: Path, tmp_path: Path) -> None:
    wrong = replace(MODEL, options={"widht": 3})
    with pytest.raises(TrainingFailed, match="widht"):
        trainer.train(folder, wrong, run="wrong", storage=tmp_path)


def test_settings_that_cannot_be_trained_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="still searches"):
        trainer.train(folder, replace(MODEL, lr=Search(1e-4, 1e-2)), run="x", storage=tmp_path)
    with pytest.raises(TrainingFailed, match="9 workers for 8 logical shards"):
        trainer.train(folder, MODEL, workers=9, run="x", storage=tmp_path)


def _wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "the driver ended by itself"
        assert time.monotonic() < until
        time.sleep(0.02)
