"""What is known of a candidate when the gate judges it, and what a gate's part says to it. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ct.evaluation.paired import Gain

CHAMPION, TRIVIAL = "champion", "baseline"


@dataclass(frozen=True)
class Evaluation:
    """A version's metrics on `rows` rows. A metric that could not be measured is not among them."""

    metrics: Mapping[str, float]
    rows: int


@dataclass(frozen=True)
class SliceGain:
    """The candidate against the champion in one slice; `gain` is None where its rows are too few or all alike to be compared."""

    segment: str
    value: str
    rows: int
    gain: Gain | None

    def __str__(self) -> str:
        """The slice as column=value."""
        return f"{self.segment}={self.value}"


@dataclass(frozen=True)
class Evidence:
    """All that a gate may ask about a candidate, measured on the same rows for everyone.

    `gains` holds the candidate against "champion" or "baseline" by (metric, against). `latency_ms` is the 99th percentile of warm calls
    of one row in the serving runtime, `size_mb` the size of the version's files. `faults` say what went wrong while it was measured.
    """

    candidate: Evaluation
    champion: Evaluation | None = None
    gains: Mapping[tuple[str, str], Gain] = field(default_factory=dict)
    slices: Sequence[SliceGain] = ()
    latency_ms: float | None = None
    size_mb: float | None = None
    faults: Sequence[str] = ()


@dataclass(frozen=True)
class Finding:
    """What one part of the gate says: "pass", "fail", "inconclusive" or "error", why, and the numbers behind it."""

    part: str
    outcome: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The finding as plain data; numbers that are not finite are None."""
        return {"part": self.part, "outcome": self.outcome, "reason": self.reason, "numbers": plain(dict(self.numbers))}


@dataclass(frozen=True)
class Verdict:
    """ "pass", "fail", "inconclusive" or "error", and why. Only "pass" goes on. `warnings` change nothing."""

    decision: str
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The verdict with every number behind it, as plain data."""
        return {
            "decision": self.decision,
            "reasons": list(self.reasons),
            "findings": [finding.to_json() for finding in self.findings],
            "warnings": list(self.warnings),
        }


def plain(value: Any) -> Any:
    """Plain JSON data without NaN and infinity, which JSON has not: they become None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
