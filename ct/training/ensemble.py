"""What a user declares about an ensemble: several modules that are trained one by one and served as one. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ct.errors import InvalidPipeline
from ct.training.declare import Search, Torch

HOW = ("average", "stacked")
_ALIKE = ("held", "calibrate", "balanced", "start")


@dataclass(frozen=True)
class Ensemble:
    """Several models as one candidate: `ct.Ensemble(ct.Torch(…), of=3)`, the same with three seeds, or `ct.Ensemble([ct.Torch(…), …])`.

    Each member is trained by itself on the same rows, with checkpoints of its own. `how` "average" serves the mean of the members' scores.
    "stacked" serves a weighted sum of their raw outputs, weights of at least 0 and an intercept being fitted on half of the rows held
    back (stacked regression: Wolpert 1992, Breiman 1996); the calibration is fitted on the other half. One graph and one set of
    weights is exported, and it meets the same gate. Members hold no ct.Search: sweep one model first.
    """

    models: Torch | Sequence[Torch]
    of: int = 1
    how: str = "average"

    def __post_init__(self) -> None:
        if isinstance(self.models, list):
            object.__setattr__(self, "models", tuple(self.models))

    @property
    def members(self) -> tuple[Torch, ...]:
        """The models that are trained. Of one that is trained several times, the seeds follow each other."""
        if not isinstance(self.models, Torch):
            return tuple(self.models)
        return tuple(dataclasses.replace(self.models, seed=(self.models.seed + at) % 2**32) for at in range(self.of))

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        if not isinstance(self.of, int) or isinstance(self.of, bool) or self.of < 1:
            return [f"of is {self.of!r}, expected how many seeds one model is trained with"]
        if not isinstance(self.models, Torch) and (not isinstance(self.models, tuple) or self.of != 1):
            return [f"models is {self.models!r} with of={self.of}, expected one ct.Torch with of=, or a list of them without"]
        if strange := [part for part in self.members if not isinstance(part, Torch)]:
            return [f"an ensemble holds {strange[0]!r}, expected ct.Torch"]
        faults = [f"member {at}: {fault}" for at, part in enumerate(self.members, 1) for fault in part.validate()]
        if len(self.members) < 2:
            faults.append("an ensemble of one, expected of=2 or more, or a list of two or more")
        if any(part.searches() for part in self.members):
            faults.append(
                "members hold a ct.Search, expected values: sweep one model, then declare the ensemble with what was best"
            )
        faults += [
            f"members differ in {name}, expected the same for all of them"
            for name in _ALIKE
            if len({getattr(part, name) for part in self.members}) > 1
        ]
        if self.how not in HOW:
            faults.append(f"how is {self.how!r}, expected one of {list(HOW)}")
        elif self.how == "stacked" and self.members[0].held == 0:
            faults.append("held is 0: stacking needs rows that are not trained on; for example held=0.1")
        return faults

    @property
    def seed(self) -> int:
        """The first member's seed."""
        return self.members[0].seed

    @property
    def held(self) -> float:
        """The share of the training rows held back, the same for all members."""
        return self.members[0].held

    @property
    def patience(self) -> int:
        """The longest patience: rows are kept aside where any member has some."""
        return max(part.patience for part in self.members)

    @property
    def calibrate(self) -> str:
        """How the combined scores are calibrated."""
        return self.members[0].calibrate

    @property
    def balanced(self) -> bool:
        """Whether every class counts alike."""
        return self.members[0].balanced

    @property
    def start(self) -> str:
        """Whether members begin with the champion's weights: each with those of the member of its number, or with the champion's."""
        return self.members[0].start

    @property
    def shards(self) -> int:
        """The fewest logical shards of a member: so many workers at most."""
        return min(part.shards for part in self.members)

    def searches(self) -> dict[str, Search]:
        """None."""
        return {}

    def resolved(self, params: Mapping[str, Any]) -> Ensemble:
        """Itself. Raises InvalidPipeline for a setting, for none is searched."""
        if params:
            raise InvalidPipeline(f"{sorted(params)} is not searched", "no setting", "sweep one model, not an ensemble")
        return self

    def seeded(self, by: int) -> Ensemble:
        """A copy whose members' seeds are moved by `by` times their number, so that no two copies share one."""
        step = by * len(self.members)
        moved = tuple(dataclasses.replace(part, seed=(part.seed + step) % 2**32) for part in self.members)
        return dataclasses.replace(self, models=moved, of=1)


def seeded(model: Torch | Ensemble, by: int) -> Torch | Ensemble:
    """The same declaration with other seeds."""
    return model.seeded(by) if isinstance(model, Ensemble) else dataclasses.replace(model, seed=(model.seed + by) % 2**32)
