"""A sweep on real Ray Tune: the same trials and winner whatever the parallelism, killed workers, rows that nobody copies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ct.features.encode import Shape
from ct.training import sweep as running
from ct.training import warm
from ct.training.data import TrainingSet
from ct.training.declare import Search, Torch
from ct.training.ledger import Ledger
from ct.training.search import Asha, Bayes, Leg, Population, Random, Reached
from ct.training.sweep import Task
from delay_model import DelayNet

from .watched import Watched

pytestmark = pytest.mark.usefixtures("ray_local")


def save(folder: Path, seed: int, rows: int = 2000, wide: int = 4) -> Path:
    random = np.random.default_rng(seed)
    numeric = random.standard_normal((rows, wide), dtype=np.float32)
    label = (numeric[:, 0] + 0.5 * random.normal(size=rows) > 0).astype(np.float32)
    return TrainingSet(numeric, random.integers(0, 5, (rows, 1)), label, Shape(wide, (5,))).save(folder)


def task(folder: Path, **changes: Any) -> Task:
    model = Torch(**{"model": DelayNet, "epochs": 4, "batch": 256, "lr": Search(1e-4, 1e-1, log=True), "seed": 3, **changes})
    return Task(save(folder / "train", 1), save(folder / "judge", 2), model)


def run(what: Task, chooser: Any, folder: Path, *, parallel: int = 2, known: dict[str, Reached] | None = None) -> Any:
    told: list[Leg] = []
    folder.mkdir(exist_ok=True)

    def note(leg: Leg, seen: Reached, ledger: Ledger) -> None:
        told.append(leg)

    ledger = running.sweep(what, chooser, seed=3, first={}, parallel=parallel, folder=folder, known=known or {}, on_leg=note)
    return ledger, told


@pytest.mark.parametrize("chooser", [Asha(6, grace=1, factor=2), Population(4, every=2)], ids=lambda chooser: chooser.name)
def test_one_or_two_at_a_time_and_from_the_middle_give_the_same(chooser: Any, tmp_path: Path) -> None:
    what = task(tmp_path)
    one, told = run(what, chooser, tmp_path / "one", parallel=1)
    assert sorted(one.known) == sorted(leg.key for leg in told)

    # Two at a time, the first leg known from before. Without its folder the legs that go on from it begin anew, and give the same.
    first = told[0].key
    two, rest = run(what, chooser, tmp_path / "two", parallel=2, known={first: one.known[first]})
    assert two.trials() == one.trials()
    assert two.winner() == one.winner()
    assert len(rest) == len(told) - 1
    assert run(what, chooser, tmp_path / "three", known=one.known)[1] == [], "nothing is left to run"


def test_a_killed_trial_is_tried_again_and_any_other_fault_is_told(tmp_path: Path) -> None:
    faults = Search(choices=["", "kill", "always", "raise", "nan"])
    what = task(tmp_path, model=Watched, lr=1e-2, options={"fault": faults, "notes": str(tmp_path / "deaths")})
    ledger, told = run(what, Random(5), tmp_path / "one")
    said = {trial.params["options.fault"]: trial for trial in ledger.trials()}
    assert len(told) == len(said) == 5, "each counts once"
    assert (tmp_path / "deaths.killed").read_text() == "dies\n"
    assert said["kill"].loss == said[""].loss
    assert said["kill"].state == "finished"
    assert (tmp_path / "deaths.always").read_text() == "dies\n" * (running.RETRIES + 1)
    assert said["always"].error == "its process was lost 3 times"
    assert "diverged at step" in said["nan"].error
    assert "no such luck" in said["raise"].error
    assert {said[fault].state for fault in ("always", "nan", "raise")} == {"failed"}
    assert ledger.winner().params["options.fault"] in ("", "kill")


def test_trials_share_the_rows_in_memory_and_their_processes(tmp_path: Path) -> None:
    options = {"width": 4, "notes": str(tmp_path / "seen")}
    model = Torch(Watched, epochs=1, batch=4096, lr=Search(1e-4, 1e-2, log=True), options=options)
    what = Task(save(tmp_path / "train", 1, rows=200_000, wide=160), save(tmp_path / "judge", 2, wide=160), model)
    size = (tmp_path / "train" / "numeric.npy").stat().st_size  # more than the 64 MB that a thread may keep
    ledger, _ = run(what, Random(4), tmp_path / "one", parallel=2)
    assert {trial.state for trial in ledger.trials()} == {"finished"}
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert 1 <= len({line["pid"] for line in seen} - {os.getpid()}) <= 2, "four trials in at most two processes"
    for pid in {line["pid"] for line in seen}:
        last = [line for line in seen if line["pid"] == pid][-1]
        assert last["mapped"] > 0.9 * size, "the rows are the file's own pages"
        assert last["own"] == 0, "none of these is a copy"
        assert last["largest"] < 0.9 * size, "nor is there one elsewhere"


def test_a_killed_controller_goes_on_with_what_optuna_was_told(tmp_path: Path) -> None:
    what = task(tmp_path, epochs=1, options={"width": Search(choices=[8, 16])})
    chooser, folder, told = Bayes(5, batch=2), tmp_path / "one", list[str]()
    folder.mkdir()
    controller = warm.call(os.getpid)

    def note(leg: Leg, seen: Reached, ledger: Ledger) -> None:
        told.append(leg.key)
        if len(told) == 3:
            os.kill(controller, signal.SIGKILL)

    ledger = running.sweep(what, chooser, seed=3, first={}, parallel=1, folder=folder, known={}, on_leg=note)
    assert warm.call(os.getpid) != controller
    assert ledger.done
    assert len(told) == len(set(told)) == len(ledger.trials()) == 5, "each counts once"
    assert {trial.state for trial in ledger.trials()} == {"finished"}
    known = {key: ledger.known[key] for key in told}
    assert Ledger(chooser, what.space(3, {}), known).trials() == ledger.trials(), "asked again, it is the same sweep"


def test_a_line_that_a_killed_controller_wrote_by_half_is_taken_back(tmp_path: Path) -> None:
    progress = tmp_path / "legs.jsonl"
    assert running._before(progress) == {}
    whole = json.dumps({"leg": "a", "loss": 0.5, "error": "", "seconds": 1.0}) + "\n"
    progress.write_text(whole + '{"leg": "b", "lo')
    assert running._before(progress) == {"a": Reached(0.5)}
    assert progress.read_text() == whole, "so the next line stands for itself"
