"""A sweep's rounds with what is known of them: which leg comes next, which trials there are, which is best. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ct.errors import TrainingFailed
from ct.training.search import Chooser, Course, Leg, Plan, Reached, Space


@dataclass(frozen=True)
class Trial:
    """One setting tried: `params` at its beginning, changed on the way by `course`. `loss` is the mean loss on the tuning rows after
    `epochs` epochs, None where there is none.

    `state`: "finished" (trained whole), "stopped" (not promoted), "failed" (`error` says why) or "waiting".
    """

    number: int
    params: Mapping[str, Any]
    epochs: int
    loss: float | None
    state: str
    error: str = ""
    course: Course = ()

    @property
    def now(self) -> dict[str, Any]:
        """The settings it ended with."""
        found = dict(self.params)
        for _, values in self.course:
            found |= values
        return found

    def to_json(self) -> dict[str, Any]:
        """The trial as plain data."""
        return asdict(self) | {"now": self.now, "course": [[at, dict(values)] for at, values in self.course]}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Trial:
        """The trial that `to_json` wrote."""
        said = {key: value for key, value in fields.items() if key != "now"}
        return Trial(**said | {"course": tuple((at, values) for at, values in said["course"])})


class Ledger:
    """The legs of a sweep: `take` one that may run now, `put` its result, until `done`.

    `known` are results from before; their legs are never given. Legs of a later round come only when all of the earlier one are in.
    """

    def __init__(self, chooser: Chooser, space: Space, known: Mapping[str, Reached]) -> None:
        self.known = dict(known)
        self.done = False
        self.space = space
        self.legs = chooser.legs(space)
        self._plan: Plan = chooser.rounds(space)
        self._past: list[tuple[Leg, ...]] = []
        self._enter(next(self._plan))
        self._go_on()

    def take(self) -> Leg | None:
        """A leg to run now, None while the round's others are still out, or when all is done."""
        return self._waiting.popleft() if self._waiting else None

    def put(self, key: str, seen: Reached) -> None:
        """How a leg ended; a second word on the same leg changes nothing."""
        self.known.setdefault(key, seen)
        self._go_on()

    def open(self) -> tuple[Leg, ...]:
        """The legs of the round under way."""
        return self._round

    def trials(self) -> tuple[Trial, ...]:
        """Every trial so far as the last leg that ended left it, in order of numbers."""
        last, ahead = dict[int, Leg](), set[int]()
        for leg in (leg for legs in (*self._past, self._round) for leg in legs):
            if leg.key in self.known or leg.number not in last:
                last[leg.number] = leg
            if leg.key not in self.known:
                ahead.add(leg.number)
        return tuple(self._trial(leg, waits=number in ahead) for number, leg in sorted(last.items()))

    def best(self) -> Trial | None:
        """Of the trials that were trained longest, the one with the lowest loss, ties by number. None when none gave a loss."""
        ended = [trial for trial in self.trials() if trial.loss is not None]
        whole = [trial for trial in ended if trial.state == "finished"] or ended
        return min(
            whole, key=lambda trial: (-trial.epochs * (trial.state != "finished"), trial.loss, trial.number), default=None
        )

    def winner(self) -> Trial:
        """The best of a sweep that is done. Raises TrainingFailed when every trial failed."""
        best = self.best()
        if best is None:
            errors = sorted({trial.error for trial in self.trials() if trial.error})
            raise TrainingFailed(
                f"every trial of the sweep failed: {'; '.join(errors[:3]) or 'none was run'}",
                "at least one that ends",
                "search a range in which training succeeds; `ct train` by hand shows the fault",
            )
        return best

    def _trial(self, leg: Leg, *, waits: bool) -> Trial:
        seen = self.known.get(leg.key)
        whole = leg.until >= self.space.whole(leg.params)
        if waits or seen is None:
            state = "waiting"
        elif seen.loss is None:
            state = "failed"
        else:
            state = "finished" if whole else "stopped" if self.done else "waiting"
        loss, error = (None, "") if seen is None else (seen.loss, seen.error)
        return Trial(leg.number, dict(leg.params), leg.until, loss, state, error, leg.course)

    def _enter(self, legs: tuple[Leg, ...]) -> None:
        unique: dict[str, Leg] = {}
        for leg in legs:
            if leg.key not in self.known:
                unique.setdefault(leg.key, leg)
        self._round, self._waiting = legs, deque(unique.values())

    def _go_on(self) -> None:
        while not self.done and all(leg.key in self.known for leg in self._round):
            reached = [self.known[leg.key] for leg in self._round]
            self._past.append(self._round)
            try:
                self._enter(self._plan.send(reached))
            except StopIteration:
                self.done, self._round = True, ()
