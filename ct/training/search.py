"""Who chooses a sweep's trials: at random, by rungs, by a model of the losses, or as a population. Pure; no trial is run here.

Every choice is made in rounds, from whole rounds alone and in the order of the trials' numbers. So neither the order in which
trials end nor how many run at a time can change what is tried, and a sweep that was killed goes on from the results it has.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ct.errors import InvalidPipeline
from ct.ids import canonical, sha256
from ct.training.declare import CHANGING, Search

Params = dict[str, Any]
Course = tuple[tuple[int, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Leg:
    """A stretch of a trial: with these settings until the end of epoch `until`. `source` is the key of the leg it goes on from, "" for none.

    Equal settings, course and end mean the same leg, whichever trial asks for it: it is run once.
    """

    number: int
    params: Mapping[str, Any]
    until: int
    course: Course = ()
    source: str = ""

    @property
    def key(self) -> str:
        """SHA-256 over what decides the leg's result."""
        return sha256(canonical([dict(self.params), self.until, [[at, dict(values)] for at, values in self.course]]))


@dataclass(frozen=True)
class Reached:
    """How a leg ended: the mean loss on the tuning rows, or why there is none."""

    loss: float | None
    error: str = ""


@dataclass(frozen=True)
class Space:
    """What is searched: the searches by name, how many epochs a whole training has (0 where that is searched), the seed, and the settings
    to begin with (empty for none)."""

    searches: Mapping[str, Search]
    epochs: int
    seed: int
    first: Mapping[str, Any]

    def whole(self, params: Mapping[str, Any]) -> int:
        """The epochs of a whole training with these settings."""
        return int(params.get("epochs", self.epochs))

    def begin(self) -> list[Params]:
        """What is tried first: `first`, if it still fits, then every search's middle."""
        fits = self.first.keys() == self.searches.keys() and all(self.searches[k].holds(v) for k, v in self.first.items())
        middle = {name: search.middle() for name, search in self.searches.items()}
        return [dict(self.first), middle] if fits and dict(self.first) != middle else [middle]


Plan = Generator[tuple[Leg, ...], Sequence[Reached], None]
"""Gives a round's legs and is sent their results in the same order; ends when there is nothing left to try."""


class Chooser(Protocol):
    """Who chooses a sweep's trials."""

    trials: int

    def validate(self) -> list[str]:
        """Faults of the declaration."""
        ...

    def rounds(self, space: Space) -> Plan:
        """The rounds of a sweep of this space. Raises InvalidPipeline when this space cannot be searched so."""
        ...

    def legs(self, space: Space) -> int:
        """How many legs such a sweep has at most."""
        ...


@dataclass(frozen=True)
class Random:
    """`trials` settings drawn from the seed alone, each trained whole. A longer list begins with the shorter one."""

    trials: int = 8
    name: ClassVar[str] = "random"

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        return _at_least(self, trials=1)

    def rounds(self, space: Space) -> Plan:
        """One round of all trials."""
        yield tuple(Leg(at, drawn, space.whole(drawn)) for at, drawn in enumerate(settings(space, self.trials), 1))

    def legs(self, space: Space) -> int:
        """One leg a trial."""
        return self.trials


@dataclass(frozen=True)
class Asha:
    """Successive halving: `trials` settings are trained for `grace` epochs, the best of every `factor` go on to `factor` times as many
    epochs, and so on up to a whole training.

    The rungs are those of ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020), but a rung is decided when all of
    it is in, ties by the trial's number. Each trial goes on from where it stopped, on the learning rates of a whole training.
    """

    trials: int = 9
    grace: int = 1
    factor: int = 3
    name: ClassVar[str] = "asha"

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        return _at_least(self, trials=2, grace=1, factor=2)

    def rungs(self, epochs: int) -> list[int]:
        """The epochs at which trials are compared, the last of them a whole training."""
        found, at = list[int](), self.grace
        while at < epochs:
            found.append(at)
            at *= self.factor
        return [*found, epochs]

    def rounds(self, space: Space) -> Plan:
        """One round a rung."""
        _fixed_epochs(space, "Asha")
        if self.grace >= space.epochs:
            raise InvalidPipeline(
                f"Asha(grace={self.grace}) for a training of {space.epochs} epoch(s)",
                "fewer epochs in the first rung than in a whole training",
                "train longer, lower grace, or use ct.Random",
            )
        alive = [Leg(at, drawn, 0) for at, drawn in enumerate(settings(space, self.trials), 1)]
        for rung in self.rungs(space.epochs):
            legs = tuple(Leg(leg.number, leg.params, rung, source=leg.key if leg.until else "") for leg in alive)
            ranked = rank(legs, (yield legs))
            alive = sorted(ranked[: max(1, len(legs) // self.factor)], key=lambda leg: leg.number)
            if not alive:
                return

    def legs(self, space: Space) -> int:
        """Fewer legs each rung."""
        counts = [self.trials]
        for _ in self.rungs(space.epochs)[1:]:
            counts.append(max(1, counts[-1] // self.factor))
        return sum(counts)


@dataclass(frozen=True)
class Bayes:
    """Optuna's tree-structured Parzen estimator, through Ray Tune's OptunaSearch: `batch` trials at a time, each trained whole, chosen from
    what all earlier batches gave; the first batch is the known beginnings and random. Run at most `batch` trials at a time."""

    trials: int = 16
    batch: int = 4
    name: ClassVar[str] = "bayes"

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        return _at_least(self, trials=1, batch=1)

    def rounds(self, space: Space) -> Plan:
        """One round a batch. Settings that come again are told their known result, and others are asked for instead."""
        from ct.training.bayes import Asked

        asked, known = Asked(space, self.batch), dict[str, Reached]()
        number = 0
        while number < self.trials:
            legs: list[tuple[str, Leg]] = []
            waiting = dict[str, list[str]]()
            for _ in range(20 * self.batch):
                if len(legs) == min(self.batch, self.trials - number):
                    break
                name, params = asked.ask()
                leg = Leg(number + len(legs) + 1, params, space.whole(params))
                if leg.key in known:
                    asked.tell(name, known[leg.key])
                elif leg.key in waiting:
                    waiting[leg.key].append(name)
                else:
                    waiting[leg.key] = [name]
                    legs.append((name, leg))
            if not legs:
                return
            reached = yield tuple(leg for _, leg in legs)
            for (_, leg), seen in zip(legs, reached, strict=True):
                known[leg.key] = seen
                for name in waiting[leg.key]:
                    asked.tell(name, seen)
            number += len(legs)

    def legs(self, space: Space) -> int:
        """One leg a trial."""
        return self.trials


@dataclass(frozen=True)
class Population:
    """`trials` settings trained side by side (Jaderberg et al., Population Based Training of Neural Networks, 2017). After every `every`
    epochs the worst quarter takes over weights and settings of one of the best quarter, and moves lr, weight_decay and clip a step
    up or down (by 1.25) or, one time in four, anywhere in their range.

    What it finds is a course: settings that change between epochs. The winner's whole course is trained again before the gate.
    """

    trials: int = 8
    every: int = 1
    name: ClassVar[str] = "population"

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        return _at_least(self, trials=2, every=1)

    def rounds(self, space: Space) -> Plan:
        """One round a generation."""
        _fixed_epochs(space, "Population")
        moving = [name for name in CHANGING if name in space.searches]
        if not moving or self.every >= space.epochs:
            raise InvalidPipeline(
                f"Population(every={self.every}) over {sorted(space.searches)} for {space.epochs} epoch(s)",
                f"one of {list(CHANGING)} searched, and more epochs than `every`",
                "search lr, train longer, or use ct.Random",
            )
        random = np.random.Generator(np.random.Philox(key=[space.seed, 2]))
        alive = [Leg(at, drawn, self.every) for at, drawn in enumerate(settings(space, self.trials), 1)]
        while True:
            reached = yield tuple(alive)
            until = alive[0].until
            ranked = rank(alive, reached)
            if until >= space.epochs or not ranked:
                return
            quarter = max(1, len(alive) // 4) if len(alive) > 1 else 0
            best = ranked[:quarter] or ranked
            kept = {leg.number for leg in ranked[: max(len(alive) - quarter, 1)]}
            later = min(until + self.every, space.epochs)
            alive = [
                Leg(leg.number, leg.params, later, leg.course, leg.key)
                if leg.number in kept
                else self._taken(leg.number, best[int(random.integers(len(best)))], later, space, moving, random)
                for leg in alive
            ]

    def legs(self, space: Space) -> int:
        """Every trial in every generation."""
        return self.trials * -(-space.epochs // self.every)

    def _taken(
        self, number: int, donor: Leg, later: int, space: Space, moving: Sequence[str], random: np.random.Generator
    ) -> Leg:
        """The donor's leg continued with other values; every draw is made whatever the others gave."""
        now = dict(donor.params)
        for _, values in donor.course:
            now |= values
        changed = {}
        for name in moving:
            again, share, up = random.random(), random.random(), bool(random.random() < 0.5)
            search = space.searches[name]
            changed[name] = search.at(float(share)) if again < 0.25 else search.near(now[name], up=up)
        return Leg(number, donor.params, later, (*donor.course, (donor.until, changed)), donor.key)


CHOOSERS: Mapping[str, type[Any]] = {kind.name: kind for kind in (Random, Asha, Bayes, Population)}


def settings(space: Space, trials: int) -> tuple[Params, ...]:
    """The settings to try: `space.begin()`, then drawn ones. The same seed gives the same list, a longer list begins with the shorter,
    and no setting comes twice."""
    random = np.random.Generator(np.random.Philox(key=[space.seed, 1]))
    found = {canonical(params): params for params in space.begin()}
    for _ in range(20 * trials):
        if len(found) >= trials:
            break
        drawn = {name: search.at(float(random.random())) for name, search in sorted(space.searches.items())}
        found.setdefault(canonical(drawn), drawn)
    return tuple(found.values())[:trials]


def rank(legs: Sequence[Leg], reached: Sequence[Reached]) -> list[Leg]:
    """The legs that gave a loss, the best first, ties by the trial's number."""
    ended = [(seen.loss, leg.number, leg) for leg, seen in zip(legs, reached, strict=True) if seen.loss is not None]
    return [leg for _, _, leg in sorted(ended, key=lambda item: item[:2])]


def _fixed_epochs(space: Space, who: str) -> None:
    if "epochs" in space.searches:
        raise InvalidPipeline(
            f"{who} over a search of epochs",
            "a fixed number of epochs",
            f"use ct.Random or ct.Bayes, or fix epochs for ct.{who}",
        )


def _at_least(part: Any, **limits: int) -> list[str]:
    said = {name: getattr(part, name) for name in limits}
    return [
        f"{name} is {said[name]!r}, expected a whole number of at least {limit}"
        for name, limit in limits.items()
        if not isinstance(said[name], int) or isinstance(said[name], bool) or said[name] < limit
    ]
