"""A sweep on Ray Tune: Tune runs the legs of trials in processes that it reuses; which legs there are and what they gave is the ledger's."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ct.errors import CtError, Unavailable
from ct.ids import describe, fingerprint
from ct.objectives import BINARY, Objective
from ct.training import warm
from ct.training.declare import Torch, pickled, unpickled
from ct.training.ledger import Ledger
from ct.training.search import Chooser, Course, Leg, Reached, Space

RETRIES = 2
"""How often a leg is begun again whose process was killed. It goes on from its own checkpoint and counts once."""


@dataclass(frozen=True)
class Task:
    """What every trial shares: the folders of encoded rows that train, that judge and that stop training early (None: nothing does), the
    model with its searches, the objective, weights to begin with, and whether a trial takes a GPU."""

    train: Path
    judge: Path
    model: Torch
    objective: Objective = BINARY
    stop: Path | None = None
    start: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    gpu: bool = False

    def space(self, seed: int, first: Mapping[str, Any]) -> Space:
        """What is searched. `first` are settings to begin with, empty for none."""
        searches = self.model.searches()
        return Space(searches, 0 if "epochs" in searches else self.model.epochs, seed, first)


def sweep(
    task: Task,
    chooser: Chooser,
    *,
    seed: int,
    first: Mapping[str, Any],
    parallel: int,
    folder: Path,
    known: Mapping[str, Reached],
    on_leg: Callable[[Leg, Reached, Ledger], None],
) -> Ledger:
    """Carry a sweep to its end, `parallel` trials at a time, and return its ledger.

    `known` is what an earlier, killed call finished, by the legs' keys; it is not run again. `on_leg` is told of each other leg as soon
    as it ends. `folder` keeps checkpoints and must be reachable from every node; without them legs begin anew, with the same bytes.
    Raises Unavailable without Ray, InvalidPipeline when `chooser` cannot search this space.
    """
    ledger = Ledger(chooser, task.space(seed, first), known)
    if ledger.done:
        return ledger
    legs = {leg.key: leg for leg in ledger.open()}
    progress = folder / "legs.jsonl"
    progress.unlink(missing_ok=True)

    def note(line: Mapping[str, Any]) -> None:
        key, seen = line["leg"], Reached(line["loss"], line["error"])
        if key not in ledger.known:
            leg = legs[key]
            ledger.put(key, seen)
            legs.update({leg.key: leg for leg in ledger.open()})
            on_leg(leg, seen, ledger)

    args = (*_packed(task), chooser, ledger.space, dict(known), parallel, str(folder.resolve()))
    warm.call(_tune, *args, progress=progress, on_progress=note)
    if not ledger.done:
        raise Unavailable("Ray Tune ended before all trials had", "a result of each", "ask for the sweep again; it goes on")
    return ledger


def settled(model: Torch, params: Mapping[str, Any], course: Course) -> Torch:
    """The declaration with a trial's first settings and its course."""
    return model.resolved({**params, "course": course})


def _packed(task: Task) -> tuple[Any, ...]:
    """The task for another process: its model as bytes, and what these bytes need to be read."""
    bytes_, paths = pickled(task.model)
    shared = {name: getattr(task, name) for name in ("objective", "start", "gpu")}
    rows = {name: str(path.resolve()) if (path := getattr(task, name)) else "" for name in ("train", "judge", "stop")}
    return bytes_, paths, {**shared, **rows}


def _tune(
    model: bytes,
    paths: tuple[str, ...],
    shared: dict[str, Any],
    chooser: Chooser,
    space: Space,
    known: dict[str, Reached],
    parallel: int,
    folder: str,
) -> None:
    """Runs in the warm process, whose environment the trials inherit. Called again after its process was killed, it goes on."""
    import ray
    from ray import tune

    progress = Path(folder) / "legs.jsonl"
    ledger = Ledger(chooser, space, known | _before(progress))
    if ledger.done:
        return
    # Beside an endpoint a small machine may have no whole CPU left; a trial then runs on what there is.
    resources = {"cpu": min(1.0, max(0.1, ray.available_resources().get("CPU", 0.0)))} | ({"gpu": 1.0} if shared["gpu"] else {})
    tuner = tune.Tuner(
        tune.with_resources(_trainable(), resources),
        param_space={"model": model, "paths": paths, "folder": folder, **shared},
        # One process runs many legs: importing torch anew for each would cost more than a short training.
        tune_config=tune.TuneConfig(
            search_alg=_searcher(ledger, progress), num_samples=-1, max_concurrent_trials=parallel, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(Path(folder) / "tune"), verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)
        ),
    )
    tuner.fit()
    shutil.rmtree(Path(folder) / "tune", ignore_errors=True)


def _before(progress: Path) -> dict[str, Reached]:
    """What a process that was killed had told; a line it did not finish is taken back."""
    text = progress.read_text() if progress.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        progress.write_text(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["leg"]: Reached(line["loss"], line["error"]) for line in lines}


def _searcher(ledger: Ledger, progress: Path) -> Any:
    from ray.tune.search import Searcher

    from ct.training.loop import tell

    class Rounds(Searcher):
        """Gives Tune the ledger's legs, and the ledger what Tune brings back."""

        def __init__(self) -> None:
            super().__init__(metric="loss", mode="min")
            self.out: dict[str, Leg] = {}

        def suggest(self, trial_id: str) -> Any:
            if ledger.done:
                return Searcher.FINISHED
            leg = ledger.take()
            if leg is None:
                return None
            self.out[trial_id] = leg
            return {"leg": json.dumps(dataclasses.asdict(leg))}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            leg = self.out.pop(trial_id)
            loss = math.inf if result is None else result["loss"]
            said = f"its process was lost {RETRIES + 1} times" if result is None else result["error"]
            seconds = 0.0 if result is None else result["seconds"]
            seen = Reached(
                loss if math.isfinite(loss) else None, said or ("" if math.isfinite(loss) else "its loss is no number")
            )
            tell(progress, {"leg": leg.key, "loss": seen.loss, "error": seen.error, "seconds": seconds})
            ledger.put(leg.key, seen)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a sweep goes on from the journal, never from Tune's files."""

        def __reduce__(self) -> tuple[Any, ...]:
            return str, ()  # for Tune's files, which nobody reads

    return Rounds()


def _trainable() -> type[Any]:
    from ray import tune

    class Attempt(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.now = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.now = new_config
            return True

        def step(self) -> dict[str, Any]:
            begun = time.monotonic()
            loss, error = attempt(self.now)
            return {"loss": loss, "error": error, "seconds": round(time.monotonic() - begun, 3), "done": True}

        def save_checkpoint(self, folder: str) -> None:
            """Nothing: a leg keeps its own checkpoints."""

    return Attempt


def attempt(config: Mapping[str, Any]) -> tuple[float, str]:
    """One leg in this process: train on from its source, and give the mean loss on the judging rows, or infinity and why there is none."""
    from ct.training import building, determinism, loop

    said = json.loads(config["leg"])
    leg = Leg(**said | {"course": tuple((at, values) for at, values in said["course"])})
    declared = unpickled(config["model"], config["paths"])
    model = settled(declared, leg.params, leg.course)
    home = Path(config["folder"]) / "legs"
    here = home / leg.key[:32]
    source = home / leg.source[:32]
    if leg.source and source.is_dir() and not here.exists():
        part = here.with_name(f".{here.name}")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
        part.rename(here)
    code, paths = pickled(model)
    job = loop.Job(
        config["train"],
        code,
        paths,
        # What a leg and its source share: a course is a way through one training.
        identity=fingerprint([describe(dataclasses.replace(model, course=())), describe(config["objective"])]),
        objective=config["objective"],
        stop=config["stop"],
        start=config["start"],
        checkpoints=str(here),
        until=leg.until,
    )
    try:
        outcome = loop.run(job, determinism.Group(device="cuda" if config["gpu"] else "cpu"))
        if outcome.diverged_at >= 0:
            return math.inf, f"diverged at step {outcome.diverged_at}: {outcome.fault}"
        return building.mean_loss(model, config["objective"], outcome.weights, Path(config["judge"])), ""
    except CtError as error:
        return math.inf, error.found
    except Exception as error:  # a user's module may raise anything; the trial is lost, not the sweep
        return math.inf, f"{type(error).__name__}: {error}"
