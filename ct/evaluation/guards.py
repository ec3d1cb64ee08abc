"""The gate's guards: comparisons by their intervals, slices with a correction for their number, latency and size. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ct.evaluation.evidence import Evidence, Finding, SliceGain
from ct.evaluation.paired import Gain, holm


def compared(evidence: Evidence, metric: str, against: str, limit: float, part: str, *, strictly: bool = False) -> Finding:
    """What a gain's interval says about a limit: pass above it, fail below it, inconclusive where it lies inside.

    `strictly`: a gain that is exactly the limit does not pass. An error where the gain was not measured.
    """
    found = evidence.gains.get((metric, against))
    if found is None or not math.isfinite(found.estimate):
        return Finding(part, "error", f"{metric} against the {against} was not measured on the same rows", {"limit": limit})
    numbers: dict[str, Any] = {"limit": limit, **found.to_json()}
    said = (
        f"{metric} {found.ours:.4f} against the {against}'s {found.theirs:.4f}: better by {_interval(found)}, limit {limit:+.4f}, "
        f"on {found.rows:,} rows in {found.blocks} blocks"
    )
    if found.low > limit or (found.low >= limit and not strictly):
        return Finding(part, "pass", said, numbers)
    surely = found.high <= limit if strictly else found.high < limit
    return Finding(part, "fail" if surely else "inconclusive", said, numbers)


def _interval(gain: Gain) -> str:
    return f"{gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


@dataclass(frozen=True)
class Slices:
    """No slice is surely worse than the champion's by more than `margin` in `metric`; slices of fewer than `minimum` rows are not judged.

    One of fifty slices looks bad by chance alone, and one false alarm stops a good candidate. So the p-values are corrected by Holm's
    method: the chance of even one false alarm stays at 1 - confidence. What is not surely worse passes: this guard finds harm, it does
    not prove that there is none.
    """

    metric: str = ""
    margin: float = 0.03
    minimum: int = 200

    def by_metric(self, metric: str) -> Slices:
        """The guard with `metric` where it names none."""
        return self if self.metric else replace(self, metric=metric)

    def judge(self, evidence: Evidence, confidence: float) -> Finding:
        """A fail that names the slices that are surely worse."""
        judged: list[tuple[SliceGain, Gain]] = [(item, item.gain) for item in evidence.slices if item.gain is not None]
        left = len(evidence.slices) - len(judged)
        corrected = holm([gain.worse_than(-self.margin) for _, gain in judged])
        worse = [(item, gain) for (item, gain), p in zip(judged, corrected, strict=True) if p <= 1 - confidence]
        numbers = {
            "margin": self.margin,
            "slices": {
                str(item): gain.to_json() | {"corrected_p": p} for (item, gain), p in zip(judged, corrected, strict=True)
            },
            "not_judged": [str(item) for item in evidence.slices if item.gain is None],
        }
        part = f"{self.metric} of no slice worse by {self.margin:g}"
        small = f"; {left} too small or with labels all alike" if left else ""
        if worse:
            named = ", ".join(f"{item} {_interval(gain)}" for item, gain in worse[:5])
            return Finding(part, "fail", f"{self.metric} is worse by more than {self.margin:g} in {named}", numbers)
        if not judged:
            return Finding(part, "pass", f"no slice has {self.minimum} rows to be judged by{small}", numbers)
        item, gain = min(judged, key=lambda pair: pair[1].estimate)
        said = (
            f"none of {len(judged)} slices is surely worse by more than {self.margin:g}, the lowest is {item} {_interval(gain)}"
        )
        return Finding(part, "pass", said + small, numbers)


@dataclass(frozen=True)
class Fits:
    """The 99th percentile of warm calls of one row in the serving runtime is at most `latency_ms`, the version's files at most `size_mb` (10^6 bytes)."""

    latency_ms: float | None = None
    size_mb: float | None = None

    def judge(self, evidence: Evidence) -> list[Finding]:
        """One finding for each limit."""
        found = []
        for name, limit, value in (
            ("latency", self.latency_ms, evidence.latency_ms),
            ("size", self.size_mb, evidence.size_mb),
        ):
            if limit is None:
                continue
            unit = "ms" if name == "latency" else "MB"
            part, numbers = f"{name} at most {limit:g} {unit}", {"value": value, "limit": limit}
            if value is None:
                found.append(Finding(part, "error", f"{name} was not measured", numbers))
            else:
                outcome = "pass" if value <= limit else "fail"
                relation = "within" if outcome == "pass" else "above"
                found.append(Finding(part, outcome, f"{name} {value:.3f} {unit} is {relation} {limit:g} {unit}", numbers))
        return found
