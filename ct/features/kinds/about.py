"""What people should know of a feature: who owns it, what it means, and what stands in for a missing value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times
from ct.features.kinds.ratio import Ratio
from ct.roles import Column, Columns, Feature, History, Lookup


@dataclass(frozen=True)
class About:
    """A feature with its owner and description, which change nothing, and a `default` number for missing ones, which does."""

    feature: Any
    owner: str = field(default="", metadata={"says": "nothing"})
    description: str = field(default="", metadata={"says": "nothing"})
    default: float | None = None

    @classmethod
    def example(cls) -> About:
        """A ratio with a default."""
        return cls(Ratio.example(), "ops", "load a leg", 0.0)

    def outputs(self) -> tuple[Column, ...]:
        """The feature's."""
        return tuple(self.feature.outputs())

    def inputs(self) -> tuple[str, ...]:
        """The feature's."""
        return tuple(self.feature.inputs())

    def lookups(self) -> tuple[Lookup, ...]:
        """The feature's."""
        return tuple(self.feature.lookups())

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The feature's, with the default where a number is missing."""
        made: Made = self.feature.compute(rows, times, history)
        if self.default is None:
            return made
        return {name: np.where(np.isnan(values), self.default, values) for name, values in made.items()}


def about(feature: Feature, *, owner: str = "", description: str = "", default: float | None = None) -> Feature:
    """`feature` with what the catalogue shows of it. `default` stands in for missing numbers, in training and in serving."""
    if default is not None and any(column.kind != "numeric" for column in feature.outputs()):
        raise InvalidPipeline(
            f"about(default={default!r}) of a category", "a feature of numbers", "missing is a category of its own"
        )
    if default is not None and any(column.sequence for column in feature.outputs()):
        raise InvalidPipeline(
            f"about(default={default!r}) of events", "events without a default", "an event that is missing must stay so"
        )
    return About(feature, owner, description, None if default is None else float(default))
