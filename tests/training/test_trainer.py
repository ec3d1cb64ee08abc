"""Training on real Ray: the same bytes on any number of workers, and after any kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
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

MODEL = Torch(DelayNet, epochs=6, batch=512, lr=3e-3, seed=3)


def rows(count: int = 24_000, *, chance: int = 5) -> TrainingSet:
    random = np.random.default_rng(chance)
    numeric = random.normal(size=(count, 12)).astype(np.float32)
    cardinalities = (16, 5, 300)
    category = np.stack([random.integers(0, size, count) for size in cardinalities], axis=1)
    odds = numeric[:, 0] + 0.5 * (category[:, 0] > 8)
    label = (random.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    return TrainingSet(numeric, category, label, Shape(12, cardinalities))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows().save(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> trainer.Trained:
    return trainer.train(folder, MODEL, run="undisturbed", storage=tmp_path_factory.mktemp("storage"))


def test_it_learns_and_says_how(undisturbed: trainer.Trained) -> None:
    losses = [epoch["loss"] for epoch in undisturbed.history]
    assert len(losses) == 6
    assert losses[-1] < 0.63 < losses[0]
    assert undisturbed.resumed == 0
    assert undisturbed.contract["threads"] == 1
    assert undisturbed.contract["shards"] == 8
    assert set(undisturbed.weights) >= {"embeddings.0.weight", "layers.0.weight", "layers.0.bias"}


def test_a_group_gives_the_same_bytes(folder: Path, tmp_path: Path, undisturbed: trainer.Trained) -> None:
    seen: list[int] = []
    made = trainer.train(
        folder, MODEL, workers=2, run="group", storage=tmp_path, on_progress=lambda line: seen.append(line["epoch"])
    )
    assert made.digest == undisturbed.digest
    assert made.contract == undisturbed.contract
    assert seen == list(range(6))


def test_a_killed_training_process_goes_on_within_the_call(folder: Path, tmp_path: Path, undisturbed: trainer.Trained) -> None:
    killed: list[int] = []

    def kill_once(line: object) -> None:
        if not killed:
            killed.append(process)
            os.kill(process, signal.SIGKILL)

    process = warm.call(os.getpid)
    made = trainer.train(folder, MODEL, run="hit", storage=tmp_path, every_steps=5, on_progress=kill_once)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_inside_the_users_module_ends_the_run_at_once(tmp_path: Path, workers: int) -> None:
    odd = rows(2_000)
    odd.category[1_000, 2] = 10**6
    odd.save(tmp_path / "set")
    with pytest.raises(TrainingFailed, match=r"IndexError: index out of range.* \(delay_model.py:\d+\)"):
        trainer.train(tmp_path / "set", replace(MODEL, epochs=1), run="odd", storage=tmp_path, workers=workers)
    attempts = list((tmp_path / "odd" / "checkpoints").glob("attempt-*"))
    assert len(attempts) == 1, "another attempt would meet the same error"


def test_a_group_is_kept_for_the_next_run(folder: Path, tmp_path: Path) -> None:
    seen: dict[str, set[int]] = {}

    def note(run: str) -> Callable[[object], None]:
        def look(line: object) -> None:
            beats = [json.loads(path.read_text()) for path in (tmp_path / run / "beats").glob("[!.]*.json")]
            seen.setdefault(run, set()).update(beat["pid"] for beat in beats)

        return look

    for run, seed in (("one", 1), ("two", 2)):
        model = replace(MODEL, seed=seed, epochs=4)
        made = trainer.train(folder, model, workers=2, run=run, storage=tmp_path, on_progress=note(run))
        assert made.notes == ()
    assert len(seen["one"]) == 2
    assert seen["one"] == seen["two"]


def test_early_stopping_is_the_same_on_a_group(folder: Path, tmp_path: Path) -> None:
    stop = rows(3_001, chance=6).save(tmp_path / "stop")
    model = replace(MODEL, lr=0.05, schedule="constant", epochs=20, patience=2)
    alone, group = (
        trainer.train(folder, model, stop=stop, workers=workers, run=f"on-{workers}", storage=tmp_path) for workers in (0, 2)
    )
    losses = [entry["stop_loss"] for entry in alone.history]
    assert alone.best == int(np.argmin(losses))
    assert len(losses) == alone.best + 3 < 20
    assert (group.digest, group.history, group.best) == (alone.digest, alone.history, alone.best)


def test_patience_without_rows_is_told(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    model = replace(MODEL, epochs=2, patience=1)
    made = trainer.train(folder, model, run="no-rows", storage=tmp_path, on_note=told.append)
    assert "patience has no rows to look at: all epochs are trained" in told
    assert len(made.history) == 2


def test_a_wrong_option_names_the_users_error(folder: Path, tmp_path: Path) -> None:
    wrong = replace(MODEL, options={"widht": 3})
    with pytest.raises(TrainingFailed, match="widht"):
        trainer.train(folder, wrong, run="wrong", storage=tmp_path)


def test_settings_that_cannot_be_trained_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="still searches"):
        trainer.train(folder, replace(MODEL, lr=Search(1e-4, 1e-2)), run="x", storage=tmp_path)
    with pytest.raises(TrainingFailed, match="9 workers for 8 logical shards"):
        trainer.train(folder, MODEL, workers=9, run="x", storage=tmp_path)
    with pytest.raises(TrainingFailed, match="9 workers for 8 logical shards"):
        trainer.train(folder, MODEL, workers=(1, 9), run="x", storage=tmp_path)
    for wrong in (-1, (0, 2), (3, 2)):
        with pytest.raises(TrainingFailed, match=r"expected: a number of at least 0, or \(min, max\)"):
            trainer.train(folder, MODEL, workers=wrong, run="x", storage=tmp_path)
