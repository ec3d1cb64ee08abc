"""What begins at the same moment in two processes: each has its own, and nothing of the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ct.control import retrain, runs, sweeps
from ct.control.place import Place
from ct.errors import Untrusted
from ct.settings import load
from ct.store import signing
from ct.store.artifacts import Artifacts
from ct.store.journal import Event, Journal
from ct.testing import journal
from ct.training.search import Leg, Reached
from tests.control import shop

INPUTS: dict[str, Any] = {
    "shards": {"flights": ["a"]}, "snapshots": {}, "until": 1, "params": {}, "seed": 7, "code": "c", "pipeline": "p",
}  # fmt: skip


def test_whoever_begins_a_run_gets_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, append = journal(tmp_path), Journal.append

    def another_begins(self: Journal, *args: Any, **said: Any) -> tuple[Event, ...]:
        made = append(self, *args, **said)
        monkeypatch.setattr(Journal, "append", append)
        runs.start(book, "p", cause="other", inputs={**INPUTS, "seed": 8})
        return made

    monkeypatch.setattr(Journal, "append", another_begins)
    assert runs.start(book, "p", cause="mine", inputs=INPUTS).cause == "mine"
    assert [run.cause for run in runs.all_runs(book, "p")] == ["mine", "other"]


def test_a_sweep_that_is_begun_twice_keeps_its_trials(tmp_path: Path) -> None:
    book = journal(tmp_path)
    run = runs.start(book, "p", cause=sweeps.CAUSE, inputs=INPUTS)
    sweeps.start(book, "p", run.id, asked={"seed": 7})
    sweeps.reached(book, "p", run.id, Leg(1, {"lr": 0.1}, 3), Reached(0.6), whole=True, best=1)
    sweeps.start(book, "p", run.id, asked={"seed": 7})
    (found,) = sweeps.all_sweeps(book, "p")
    assert [trial.loss for trial in found.trials] == [0.6]


def test_nothing_is_trained_that_could_not_be_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    theirs = signing.make()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    settings = load(tmp_path, {})
    place = Place(
        shop.pipeline(), settings, Journal(settings.database), Artifacts(settings.place("artifacts"), signing.Keys((theirs,)))
    )
    run = runs.start(place.journal, "late-sales", cause="test", inputs=INPUTS)
    monkeypatch.setattr(retrain, "_same_code", lambda *_: None)
    with pytest.raises(Untrusted, match="no private key of trusted_keys"):
        retrain.carry_out(place, run, workers=0, gpu=False, on_step=lambda _: None)
    assert [found.outcome for found in runs.all_runs(place.journal, "late-sales")] == [""], "it goes on where the key is"
