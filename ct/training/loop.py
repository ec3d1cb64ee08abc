"""The training loop that every worker runs: epochs and steps, checkpoints, early stopping, progress. It knows a group of workers, not who
started them. Its place in a run is one number, the global step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ct.ids import canonical, sha256
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, determinism, watchdog
from ct.training.building import build
from ct.training.data import TrainingSet
from ct.training.declare import unpickled
from ct.training.determinism import Group
from ct.training.feed import Feed
from ct.training.learner import Learner
from ct.training.stopping import Aside, Stopping

AGREE_STEPS = 100
_SAY_S = 15.0


@dataclass(frozen=True)
class Job:
    """What a worker must know. `model` is a pickled ct.Torch, readable once `paths` are on sys.path; an empty folder or file means: none.

    `start` are weights to begin with, by name. A checkpoint is written after each epoch, and within it every `every_steps` steps and
    whenever `every_s` seconds have passed (0: not by that). `beats` is the folder for signs of life.
    With `until`, training stops after so many epochs, on the schedule of all of them.
    """

    folder: str
    model: bytes
    paths: tuple[str, ...]
    identity: str
    objective: Objective = BINARY
    stop: str = ""
    start: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    checkpoints: str = ""
    progress: str = ""
    every_s: float = 0.0
    every_steps: int = 0
    beats: str = ""
    until: int = 0


@dataclass(frozen=True)
class Outcome:
    """How the loop ended. `diverged_at` is the step at which the run was lost, -1 for none; `fault` says why.

    `best` is the epoch whose weights these are, where early stopping chose. `notes` are what is to be told besides.
    """

    weights: dict[str, np.ndarray[Any, Any]]
    history: tuple[dict[str, Any], ...]
    contract: dict[str, Any]
    resumed: int
    diverged_at: int = -1
    fault: str = ""
    best: int = -1
    notes: tuple[str, ...] = ()


def run(job: Job, group: Group) -> Outcome:
    """Train, beginning at the newest checkpoint of this very job. Every worker returns the same weights."""
    determinism.pin(group.device)
    with watchdog.beating(job.beats, group.rank) as beat:
        course = _Course(job, group, beat)
        try:
            return course.to_the_end()
        finally:
            course.close()


class _Course:
    """A run under way on this worker."""

    def __init__(self, job: Job, group: Group, beat: watchdog.Beat) -> None:
        self.job, self.group, self.beat = job, group, beat
        self.model = unpickled(job.model, job.paths)
        rows, digest = TrainingSet.open(Path(job.folder))
        self.contract = determinism.contract(self.model, _device_name(group))
        self.aside = Aside(Path(job.stop), self.model, job.objective, group) if job.stop and self.model.patience else None
        self.key = sha256(canonical([digest, self.aside.digest if self.aside else "", job.identity, self.contract["id"]]))
        self.feed = Feed(rows, digest, self.model, job.objective, group)
        self.steps = self.feed.steps
        module = build(self.model, rows, job.objective)
        with torch.no_grad():
            found = {name: torch.from_numpy(np.array(value)) for name, value in job.start.items()}
            module.load_state_dict(found, strict=False)
        self.learner = Learner(module, self.model, job.objective, group.device, self.steps * self.model.epochs)
        self.step, self.loss = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.stopping = Stopping(self.model.patience if self.aside else 0)
        self.notes: list[str] = []
        self.writer: checkpoint.Writer | None = None
        self._resume()
        self.resumed, self.saved_at, self.said_at = self.step, time.monotonic(), time.monotonic()

    def _resume(self) -> None:
        """Go on from the checkpoint that the first worker finds; all must take the same one."""
        if not self.job.checkpoints:
            return
        folder, name = Path(self.job.checkpoints), ""
        if self.group.rank == 0:
            attempt = checkpoint.Attempt.begin(folder, self.key)
            self.writer = checkpoint.Writer(attempt, self.note)
            name = attempt.newest
            for text in attempt.notes:
                self.note(text)
        name = _told(name, self.group)
        if not name:
            return
        found = checkpoint.load(folder, name, self.key)
        said = found.course
        best = {key[5:]: value for key, value in found.tensors.items() if key.startswith("best.")}
        self.learner.restore({key[6:]: value for key, value in found.tensors.items() if key.startswith("state.")}, found.step)
        self.step, self.loss, self.history = found.step, said["loss"], list(said["history"])
        self.stopping = Stopping(self.stopping.patience, weights=best, **said["stopping"])

    def to_the_end(self) -> Outcome:
        while self.step < self.steps * (self.job.until or self.model.epochs) and not self.stopping.over:
            if fault := self._epoch(self.step // self.steps):
                return self._outcome({}, fault)
        if self.writer:
            self.writer.wait()
        best = self.stopping.best >= 0
        return self._outcome(
            {name: np.array(value) for name, value in self.stopping.weights.items()} if best else self.learner.weights()
        )

    def _outcome(self, weights: dict[str, np.ndarray[Any, Any]], fault: str = "") -> Outcome:
        at = self.step if fault else -1
        history, notes = tuple(self.history), tuple(self.notes)
        return Outcome(weights, history, self.contract, self.resumed, at, fault, self.stopping.best, notes)

    def _epoch(self, epoch: int) -> str:
        """The rest of an epoch. Returns what is wrong with the run, "" while nothing is."""
        while self.step < (epoch + 1) * self.steps:
            seen = self.learner.step(self.step, self.feed.shards(self.step), self.feed.batch, self.group)
            if fault := self.learner.fault(seen):
                return fault
            self.loss += seen.loss
            if self.step == self.resumed:
                self._tell({"began": time.time(), "step": self.step})
            self.step += 1
            self.beat.step = self.step
            if self.step % AGREE_STEPS == 0:
                determinism.agree(self.learner, self.group)
            if self.step % self.steps:
                self._within(epoch)
        if not self.learner.finite():
            return "a weight is no number"
        determinism.agree(self.learner, self.group)
        return self._after(epoch)

    def _within(self, epoch: int) -> None:
        """Between two steps of an epoch: save and tell when it is time."""
        now = time.monotonic()
        due = self.job.every_steps and self.step % self.job.every_steps == 0
        if self.writer and (due or (0 < self.job.every_s <= now - self.saved_at and not self.writer.busy)):
            self._save()
        if now - self.said_at >= _SAY_S:
            self.said_at, at = now, self.step - epoch * self.steps
            self._tell({"note": f"training, epoch {epoch + 1}, step {at:,} of {self.steps:,}, loss {self.loss / at:.4f}"})

    def _after(self, epoch: int) -> str:
        """The end of an epoch: its entry in the history, the loss on the rows kept aside, a checkpoint."""
        entry = {"epoch": epoch, "loss": self.loss / self.steps, "steps": self.steps, "rows": self.feed.batch * self.steps}
        if self.aside:
            with self.learner.judged() as module:
                entry["stop_loss"] = loss = self.aside.loss(module)
            if not np.isfinite(loss):
                return f"its loss on the rows kept aside is {loss}, no number"
            if self.stopping.saw(epoch, loss):
                self.stopping.weights = self.learner.weights()
        self.history.append(entry)
        self.loss, self.said_at = 0.0, time.monotonic()
        if self.writer:
            self._save()
        self._tell({**entry, "epochs": self.model.epochs})
        return ""

    def _save(self) -> None:
        assert self.writer
        tensors = {f"state.{name}": np.array(value) for name, value in self.learner.tensors().items()}
        tensors |= {f"best.{name}": value for name, value in self.stopping.weights.items()}
        course = {
            "history": list(self.history),
            "loss": self.loss,
            "stopping": self.stopping.numbers(),
        }
        self.writer.put(checkpoint.Checkpoint(self.key, self.step, tensors, course))
        self.saved_at = time.monotonic()

    def note(self, text: str) -> None:
        """Keep what is to be told, and tell it to who follows."""
        self.notes.append(text)
        self._tell({"note": text})

    def _tell(self, line: dict[str, Any]) -> None:
        if self.job.progress and self.group.rank == 0:
            tell(Path(self.job.progress), line)

    def close(self) -> None:
        """Leave nothing half written by an error: the next attempt may begin at once."""
        if self.writer:
            self.writer.finish()


def tell(progress: Path, line: dict[str, Any]) -> None:
    """Append a line for whoever follows the run."""
    progress.parent.mkdir(parents=True, exist_ok=True)
    with progress.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _told(text: str, group: Group) -> str:
    """The first worker's `text` on every worker."""
    if group.world == 1:
        return text
    said = [text]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def _device_name(group: Group) -> str:
    return "cpu" if group.device == "cpu" else torch.cuda.get_device_name()
