"""Sweeps of a small project, on real Tune: killed and gone on with, one trial or two at a time, judged apart from the gate's rows."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ct
from ct.cli import app
from ct.control import retrain, runs, sweep_plot, sweeping, sweeps
from ct.control.act import Actor
from ct.control.loop import observe
from ct.control.rows import rows
from ct.errors import InvalidPipeline, InvalidRequest, NotFound, TrainingFailed
from ct.evaluation.tuning import tuning
from ct.ids import describe
from ct.pipeline import load
from ct.serving import local
from ct.settings import load as settings
from ct.store import leases
from ct.training.declare import Search
from ct.training.ledger import Trial
from ct.training.search import Asha
from ct.training.sweep import settled
from tests.control.late import serve
from tests.loop import project

NAME = "late-orders"


def opened(folder: Path, **changes: Any) -> Actor:
    return Actor(load(str(folder / "pipeline.py")).replace(**changes), settings(folder))


def landed(folder: Path) -> Path:
    made = project.write(folder, local.free_port(), epochs=6)
    act = opened(made)
    assert act.ingest("orders", project.shard_path(made, 0)).kind == "published"
    act.close()
    return made


def legs(act: Actor) -> list[str]:
    return [event.data["key"] for event in act.journal.read(f"sweep/{NAME}") if event.type == "TrialReached"]


@pytest.mark.usefixtures("ray_local")
def test_killed_and_gone_on_with_it_is_the_sweep_it_would_have_been(tmp_path: Path) -> None:
    chosen = Asha(4, grace=2, factor=2)
    calm = opened(landed(tmp_path / "calm"), sweep=chosen)
    undisturbed = calm.sweep(sweeping.chooser(calm.pipeline), parallel=2)

    hurt = landed(tmp_path / "hurt")
    file = hurt / "pipeline.py"
    file.write_text(file.read_text().replace("retrain=[", "sweep=ct.Asha(4, grace=2, factor=2),\n    retrain=["))
    act = opened(hurt)
    begun = project.start(hurt, "sweep", "--parallel", "1")
    end = time.monotonic() + 120
    while not legs(act):
        assert begun.poll() is None, (hurt / "output.log").read_text()[-3000:]
        assert time.monotonic() < end, (hurt / "output.log").read_text()[-3000:]
        time.sleep(0.02)
    begun.kill()
    begun.wait()
    before = legs(act)
    assert len(before) < 7, "it was to be killed before its end"
    (run,) = runs.all_runs(act.journal, NAME)
    assert not run.outcome
    assert observe(act).run is None, "the loop does not train a sweep's run as if nothing were searched"
    shown = sweeping.last(act)
    assert (len(shown.sweep.trials), shown.sweep.ended, shown.version) == (len(before), False, None)

    told: list[str] = []
    found = act.sweep(sweeping.chooser(act.pipeline), parallel=1, on_step=told.append)
    (run,) = runs.all_runs(act.journal, NAME)
    assert run.outcome == "registered"
    assert legs(act)[: len(before)] == before
    assert len(legs(act)) == len(set(legs(act))) == len(legs(calm)) == 7, "each leg counts once"
    assert found.sweep.trials == undisturbed.sweep.trials
    assert found.sweep.best == undisturbed.sweep.best
    (other,) = runs.all_runs(calm.journal, NAME)
    assert run.facts["weights"] == other.facts["weights"]
    winner = found.sweep.winner
    assert winner
    assert run.facts["settings"] == winner.params
    assert (found.version.name, found.sweep.run) == ("v1", run.id)  # type: ignore[union-attr]
    assert not list((act.settings.home / "sweeps" / run.id).glob("legs/*")), "checkpoints of trials are gone"
    assert sweeping.last(act) == found

    # The next one begins with the best of this one, and is another sweep.
    again = sweeping.plan(act.pipeline, sweeping.chooser(act.pipeline), sweeping.first(act)).open()
    assert dict(again[0].params) == winner.now
    json.dumps(found.to_json())


def test_a_course_is_among_the_settings_by_which_a_run_is_made_again(tmp_path: Path) -> None:
    declared = opened(landed(tmp_path / "shop")).pipeline.model
    course = ((2, {"lr": 4e-3}), (4, {"lr": 5e-3}))
    used = settled(declared, {"lr": 2e-3}, course)
    kept = json.loads(json.dumps(retrain.settings_of(declared, used)))
    assert kept == {"lr": 2e-3, "course": [[2, {"lr": 4e-3}], [4, {"lr": 5e-3}]]}
    assert declared.resolved(kept) == used
    assert [used.during(epoch).lr for epoch in range(6)] == [2e-3, 2e-3, 4e-3, 4e-3, 5e-3, 5e-3]
    assert retrain.settings_of(declared, settled(declared, {"lr": 2e-3}, ())) == {"lr": 2e-3}


def test_trials_are_judged_by_rows_that_the_gate_never_sees(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"))
    data = rows(act.place, act.start_run("by hand"), on_step=lambda _: None)
    found = tuning(data.split, data.times, data.known_at, data.label)
    assert not (found.judge & data.split.judge).any()
    assert (data.times[found.judge].max() < data.split.window.start).all()
    assert (found.judge <= data.split.train).all()
    begins = data.times[found.judge].min()
    assert data.times[found.train].max() < begins
    assert data.known_at[found.train].max() < begins, "what was not known when the judging began trains nothing"
    assert 0.15 < found.judge.sum() / data.split.train.sum() < 0.25
    assert not (found.train & found.judge).any()
    few = dataclasses.replace(data.split, train=data.split.train & (data.times < data.times.min() + 3_600_000_000))
    with pytest.raises(TrainingFailed, match=r"to (judge|train) trials on"):
        tuning(few, data.times, data.known_at, data.label)


def test_trials_are_judged_by_rows_that_the_champion_they_begin_with_never_saw(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"))
    data = rows(act.place, act.start_run("by hand"), on_step=lambda _: None)
    whole = tuning(data.split, data.times, data.known_at, data.label)
    middle = int(sorted(data.times[whole.judge])[150])
    newer = tuning(data.split, data.times, data.known_at, data.label, after=middle)
    assert data.times[newer.judge].min() >= middle
    assert newer.judge.sum() < whole.judge.sum()
    assert newer.train.sum() > whole.train.sum()
    last = int(data.times[whole.judge].max())
    assert (tuning(data.split, data.times, data.known_at, data.label, after=last).judge == whole.judge).all(), (
        "too few are newer"
    )


@pytest.mark.usefixtures("ray_local")
def test_trials_begin_from_scratch_where_the_champion_knows_what_judges_them(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"))
    act.pipeline = act.pipeline.replace(model=dataclasses.replace(act.pipeline.model, start="champion"))
    act.place = dataclasses.replace(act.place, pipeline=act.pipeline)
    first = act.train(act.start_run("first"))
    serve(act, first)
    again = act.start_run("again")
    data = rows(act.place, again, on_step=lambda _: None)
    assert sweeping._task(act, again, data).start == {}, "no data came since: every row is known"
    assert act.ingest("orders", project.shard_path(act.settings.root, 1)).kind == "published"
    later = act.start_run("later")
    data = rows(act.place, later, on_step=lambda _: None)
    assert sweeping._task(act, later, data).start, "the newest fifth came after"


def test_a_sweep_of_too_few_rows_is_recorded_as_invalid(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"), holdout="10d")
    with pytest.raises(TrainingFailed, match="to train on"):
        act.sweep(sweeping.chooser(act.pipeline), parallel=1)
    (run,) = runs.all_runs(act.journal, NAME)
    assert (run.outcome, run.state) == ("failed", "invalid")


def test_what_was_left_is_left_and_a_sweep_under_way_is_not(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"))
    with pytest.raises(NotFound, match="never swept"):
        sweeping.last(act)
    run, known = sweeping._open(act, Asha(4))
    assert sweeping._open(act, Asha(4)) == (run, known), "the same again: it goes on"
    with leases.held(act.journal, runs.lease(NAME, run.id)):
        with pytest.raises(leases.Held, match=run.id):
            sweeping.sweep(act, Asha(4), parallel=1)
        assert sweeping._open(act, Asha(3))[0].id != run.id
        assert [found.outcome for found in runs.all_runs(act.journal, NAME)] == ["", ""], (
            "it is not taken from who carries it out"
        )
    other, _ = sweeping._open(act, Asha(5))
    assert other.id != run.id
    assert [found.outcome for found in runs.all_runs(act.journal, NAME)] == ["failed", "failed", ""]
    assert sweeps.all_sweeps(act.journal, NAME)[-1].run == other.id


def test_who_chooses_is_the_pipelines_or_asked_for(tmp_path: Path) -> None:
    line = opened(landed(tmp_path / "shop"), sweep=Asha(20, grace=2)).pipeline
    assert sweeping.chooser(line) == Asha(20, grace=2)
    assert sweeping.chooser(line, name="asha", trials=5) == Asha(5, grace=2)
    assert sweeping.chooser(line, name="bayes") == ct.Bayes()
    assert sweeping.chooser(line.replace(sweep=None), trials=3) == ct.Random(3)
    with pytest.raises(InvalidPipeline, match="grid"):
        sweeping.chooser(line, name="grid")
    with pytest.raises(InvalidPipeline, match="trials is 1"):
        sweeping.chooser(line, trials=1)
    with pytest.raises(InvalidPipeline, match="nothing to search"):
        sweeping.chooser(line.replace(model=line.model.resolved({})))
    with pytest.raises(InvalidPipeline, match="grace is 0"):
        line.replace(sweep=Asha(grace=0))
    with pytest.raises(InvalidPipeline, match="sweep is"):
        line.replace(sweep=ct.Random)


def ended(act: Actor) -> sweeps.Sweep:
    """A sweep whose trials were never run, with one that failed and one that was stopped."""
    searches = {"lr": Search(1e-4, 1e-1, log=True), "options.kind": Search(choices=["plain", "wide"])}
    space = {name: describe(search) for name, search in searches.items()}
    asked = {"chooser": {"name": "asha"}, "seed": 7, "space": space, "first": {}}
    trials = (
        Trial(1, {"lr": 1e-3, "options.kind": "plain"}, 6, 0.41, "finished"),
        Trial(2, {"lr": 8e-3, "options.kind": "wide"}, 6, 0.38, "finished"),
        Trial(3, {"lr": 2e-4, "options.kind": "wide"}, 2, 0.55, "stopped"),
        Trial(4, {"lr": 5e-2, "options.kind": "plain"}, 2, None, "failed", "diverged at step 3"),
    )
    sweeps.start(act.journal, NAME, "run-1-ab", asked=asked)
    sweeps.end(act.journal, NAME, "run-1-ab", trials=trials, best=2)
    return sweeps.all_sweeps(act.journal, NAME)[-1]


def test_a_picture_of_the_trials(tmp_path: Path) -> None:
    act = opened(landed(tmp_path / "shop"))
    found = ended(act)
    first = sweep_plot.draw(found, tmp_path / "one.svg").read_bytes()
    assert sweep_plot.draw(found, tmp_path / "two.svg").read_bytes() == first
    text = first.decode()
    assert text.startswith("<?xml")
    for said in ("options.kind", "loss on the tuning rows", "best so far"):
        assert f"<!-- {said}" in text, f"{said} is not written in the picture"
    assert sweep_plot.draw(found, tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    for bad in ("trials.gif", "nowhere/trials.svg"):
        with pytest.raises(InvalidRequest):
            sweep_plot.allowed(tmp_path / bad)


def asked(folder: Path, *args: str, code: int = 0) -> str:
    """What `ct sweep` prints, run in this process."""
    done = CliRunner().invoke(app, ["sweep", *args, "--root", str(folder)])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_shows_the_last_sweep_and_draws_it(tmp_path: Path) -> None:
    folder = landed(tmp_path / "shop")
    assert "never swept" in asked(folder, "--show", code=1)
    ended(opened(folder))
    picture = tmp_path / "trials.svg"
    shown = asked(folder, "--show", "--plot", str(picture))
    for said in ("2 *", "diverged at step 3", "best: trial 2", str(picture)):
        assert said in shown
    assert picture.exists()
    found = json.loads(asked(folder, "--show", "--json"))
    assert (found["best"]["number"], len(found["trials"]), found["ended"]) == (2, 4, True)
    planned = json.loads(asked(folder, "--dry-run", "--json", "--search", "asha", "--trials", "9"))
    assert [leg["epochs"] for leg in planned["round"]] == [1] * 9
    assert "the first round" in asked(folder, "--dry-run")
    assert "asha" in asked(folder, "--search", "grid", code=1)
    assert "an existing folder" in asked(folder, "--show", "--plot", "trials.gif", code=1)
    assert len(legs(opened(folder))) == 0
