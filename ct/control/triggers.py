"""When to retrain: NewData, Every, Drift. Each is a pure rule over what was observed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ct.clock import duration
from ct.errors import InvalidPipeline


@dataclass(frozen=True)
class Observed:
    """What a trigger may look at.

    `data_time` is the newest event time that landed; `trained_until` the newest one the last run saw; `new_rows` landed since then.
    `drifted` names the features that drifted in shards that landed since then.
    """

    new_rows: int = 0
    data_time: datetime | None = None
    trained_until: datetime | None = None
    drifted: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Has there been a run at all?"""
        return self.trained_until is not None


@dataclass(frozen=True)
class NewData:
    """Retrain once `rows` new rows have landed since the last run's data."""

    rows: int

    def __post_init__(self) -> None:
        if not isinstance(self.rows, int) or self.rows < 1:
            raise InvalidPipeline(
                f"NewData(rows={self.rows!r})", "a whole number of at least 1", "say how many rows make a retrain"
            )

    def decide(self, seen: Observed) -> str:
        """The cause to retrain, empty when there is none."""
        return f"{seen.new_rows:,} new rows (at least {self.rows:,})" if seen.new_rows >= self.rows else ""


@dataclass(frozen=True)
class Every:
    """Retrain once the landed data reach `span` beyond the last run's data. Counted in event time, so that a pause in the feed starts nothing."""

    span: str

    def __post_init__(self) -> None:
        duration(self.span)

    def decide(self, seen: Observed) -> str:
        """The cause to retrain, empty when there is none."""
        if seen.data_time is None or seen.trained_until is None:
            return ""
        reach: timedelta = seen.data_time - seen.trained_until
        return f"data reach {reach.days} d beyond the last run (every {self.span})" if reach >= duration(self.span) else ""


@dataclass(frozen=True)
class Drift:
    """Retrain once at least `features` features of a shard that landed have drifted away from the champion's training data."""

    features: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.features, int) or self.features < 1:
            raise InvalidPipeline(
                f"Drift(features={self.features!r})", "a whole number of at least 1", "say how many must drift"
            )

    def decide(self, seen: Observed) -> str:
        """The cause to retrain, empty when there is none."""
        if len(seen.drifted) < self.features:
            return ""
        return f"{len(seen.drifted)} drifted feature(s): {', '.join(seen.drifted[:5])}"
