"""Runs as folds: what they were started with, how they ended, and who may carry them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ct.control import decide, retrain, runs
from ct.control.act import Actor
from ct.control.place import Place
from ct.errors import Conflict, TrainingFailed
from ct.ids import fingerprint
from ct.store import leases
from ct.testing import journal
from ct.training.declare import Search, Torch
from tests.control import shop

INPUTS: dict[str, Any] = {
    "shards": {"flights": ["a", "b"]},
    "snapshots": {"flights": 7},
    "until": 1_000_000,
    "params": {"lr": 0.1},
    "seed": 7,
    "code": "c",
    "pipeline": "p",
}


def test_a_runs_life(tmp_path: Path) -> None:
    book = journal(tmp_path)
    first = runs.start(book, "p", cause="new rows", inputs=INPUTS)
    assert first.shards == {"flights": ("a", "b")}
    assert first.outcome == ""
    runs.failed(book, "p", first.id, error="diverged")
    second = runs.start(book, "p", cause="again", inputs=INPUTS)
    assert second.id != first.id
    runs.registered(book, "p", second.id, version="v1", facts={"weights": "w"})
    assert [(run.outcome, run.version, run.error) for run in runs.all_runs(book, "p")] == [
        ("failed", "", "diverged"),
        ("registered", "v1", ""),
    ]
    assert runs.all_runs(book, "p")[1].facts == {"weights": "w"}


def test_weights_know_the_rows_of_those_they_began_with(tmp_path: Path) -> None:
    book = journal(tmp_path)

    def ended(until: int, start: dict[str, Any], warm: int) -> str:
        run = runs.start(book, "p", cause="rows", inputs={**INPUTS, "start": start})
        facts = {"trained_until": until, "start": {"warm": warm}}
        runs.registered(book, "p", run.id, version="v", facts=facts)
        return run.id

    first = ended(900, {}, 0)
    second = ended(500, {"run": first}, 1)
    third = ended(600, {"run": second}, 2)
    scratch = ended(400, {"run": third}, 0)
    begun = runs.start(book, "p", cause="rows", inputs={**INPUTS, "start": {"run": third}})
    found = [runs.trained_until(book, "p", run) for run in (first, second, third, scratch, begun.id, "nobody")]
    assert found == [900, 900, 900, 400, 900, 0]


@pytest.fixture
def act(tmp_path: Path, ray_local: None) -> Iterator[Actor]:
    made = shop.opened(tmp_path)
    shop.land(made, 0)
    yield made
    made.close()


def test_a_run_that_another_process_carries_out_is_left_alone(act: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    run = shop.run(act)
    name = runs.lease("late-sales", run.id)
    with leases.held(act.journal, name):
        assert act.carry_out(decide.Train(run)) == "", "the loop waits for it"
        with pytest.raises(leases.Held, match="is carried out by process"):
            act.train(run)
    assert [event.type for event in act.journal.read(runs.stream("late-sales"))] == ["RunStarted"]


def test_a_run_that_was_ended_meanwhile_is_not_begun_again(act: Actor) -> None:
    run = shop.run(act)
    with leases.held(act.journal, runs.lease("late-sales", run.id)) as lease:
        runs.failed(act.journal, "late-sales", run.id, error="diverged", guard=lease)
    with pytest.raises(TrainingFailed, match="diverged"):
        act.train(run)
    assert len(list(act.journal.read(runs.stream("late-sales")))) == 2, "it is not recorded twice"


def test_a_run_whose_code_has_changed_fails_and_says_so(act: Actor) -> None:
    run = shop.run(act)  # it was begun with other code than there is
    with pytest.raises(TrainingFailed, match="code has changed since"):
        act.train(run)
    (found,) = runs.all_runs(act.journal, "late-sales")
    assert (found.outcome, found.state) == ("failed", "failed")


def test_a_run_that_lives_elsewhere_is_not_failed_by_whoever_has_another_pipeline(
    act: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    run = shop.run(act)
    act.pipeline = act.pipeline.replace(owner="another")
    act.place = Place(act.pipeline, act.settings, act.journal, act.artifacts)
    with leases.held(act.journal, runs.lease("late-sales", run.id)):
        assert act.carry_out(decide.Train(run)) == ""
    assert not runs.all_runs(act.journal, "late-sales")[0].outcome
    with pytest.raises(TrainingFailed, match="pipeline has changed since"):
        act.train(run)
    assert runs.all_runs(act.journal, "late-sales")[0].outcome == "failed"


def test_a_former_holder_can_record_no_failure(act: Actor) -> None:
    run = shop.run(act)
    with leases.held(act.journal, runs.lease("late-sales", run.id)) as lease:
        pass
    for write in (
        lambda: runs.failed(act.journal, "late-sales", run.id, error="late", guard=lease),
        lambda: runs.registered(act.journal, "late-sales", run.id, version="v1", facts={}, guard=lease),
    ):
        with pytest.raises(Conflict, match="taken over"):
            write()
    assert runs.all_runs(act.journal, "late-sales")[0].outcome == ""


def test_what_a_training_was_set_to_gives_the_same_declaration_again() -> None:
    declared = Torch("MLP", lr=Search(1e-4, 1e-2, log=True), options={"width": Search(16, 64)})
    used = declared.resolved({"lr": 0.005, "options.width": 32, "course": [(1, {"lr": 0.001})]})
    told = json.loads(json.dumps(retrain.settings_of(declared, used)))
    assert fingerprint(declared.resolved(told)) == fingerprint(used)
    assert retrain.settings_of(Torch("MLP"), Torch("MLP")) == {}
