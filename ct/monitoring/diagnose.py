"""Which kind of change explains what was seen: the first that fits, in a fixed order, with the evidence for all. Names, proves nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ct.monitoring.drift import FeatureDrift

Kind = Literal["data fault", "label shift", "covariate shift", "concept change", "none"]

MISSING_JUMP = 0.10
"""A share of missing values that grows by this much is a fault of the feed rather than of the world."""
BROKEN = 0.5
"""An effect above this in a column that stands almost alone is, too: half of its distribution went elsewhere."""
LOST_AUROC = 0.02
LOST_SHARE = 0.05
"""Of a metric that is better when lower: so much more than at the gate is lost quality."""
_LOWER = {"mae": "mean error", "pinball": "pinball loss", "log_loss": "log loss"}
SHIFTED_BASE = 0.02


@dataclass(frozen=True)
class Cause:
    """The likeliest kind of change, in a sentence, and everything that was looked at. `retrain` is False where new data would teach a fault."""

    kind: Kind
    text: str
    evidence: tuple[str, ...]

    @property
    def retrain(self) -> bool:
        """May a retraining help?"""
        return self.kind in ("label shift", "covariate shift", "concept change")


def explain(
    drift: Sequence[FeatureDrift],
    *,
    performance_before: Mapping[str, Any] | None = None,
    performance_now: Mapping[str, Any] | None = None,
    score: FeatureDrift | None = None,
) -> Cause:
    """The cause behind `drift` and a change of quality.

    `performance_before` has the metrics at the gate, `performance_now` those of monitoring/performance.py, `score` the drift of the
    model's own outputs. What is missing is said to be unknown. Order: data fault, label shift, covariate shift, concept change.
    Label noise cannot be told from a concept change by these means, and the text says so.
    """
    before, now = performance_before or {}, performance_now or {}
    drifted = sorted((row for row in drift if row.drifted), key=lambda row: -row.effect)
    lost, base = _lost(before, now), _base_shift(before, now)
    evidence = (
        _drift_line(drifted, len(drift)),
        *([_score_line(score)] if score else []),
        _quality_line(before, now),
        _base_line(before, now),
    )
    if faulty := _faulty(drifted, len(drift)):
        names = ", ".join(row.column + (f" ({row.note})" if row.note else "") for row in faulty[:3])
        return Cause("data fault", f"looks like a data fault: {names}; check the source before retraining", evidence)
    if base and not drifted and not (score and score.drifted):
        return Cause("label shift", f"label shift: {_base_line(before, now)}, while the features stayed", evidence)
    if drifted:
        return Cause("covariate shift", f"covariate shift: {evidence[0]}; {_after(lost, before, now)}", evidence)
    if lost:
        text = f"concept change or label noise: {_quality_line(before, now)}, while the features stayed"
        return Cause("concept change", text + "; look at a sample of the labels to tell the two apart", evidence)
    return Cause("none", f"no change found; {_quality_line(before, now)}", evidence)


def _faulty(drifted: Sequence[FeatureDrift], columns: int) -> list[FeatureDrift]:
    """Columns that broke rather than moved: values went missing, or one of many is far off while the others stand."""
    gone = [row for row in drifted if row.missing_now - row.missing_before >= MISSING_JUMP]
    alone = columns >= 5 and len(drifted) <= max(1, columns // 10)
    return gone or [row for row in drifted if alone and row.effect >= BROKEN]


def _metric(now: Mapping[str, Any]) -> str:
    """The metric that quality is followed by: the one that has an interval (monitoring/performance.py)."""
    return next((name for name in _LOWER if f"{name}_low" in now), "auroc")


def _lost(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Is even the better end of the live metric worse than the old one, by LOST_AUROC or LOST_SHARE?"""
    name = _metric(now)
    old = before.get(name)
    if name != "auroc":
        low = now.get(f"{name}_low")
        return old is not None and low is not None and bool(low > old * (1 + LOST_SHARE))
    high = now.get("auroc_high", now.get("auroc"))
    return old is not None and high is not None and bool(high < old - LOST_AUROC)


def _base_shift(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Did the share of positive labels move by SHIFTED_BASE and beyond 2.6 standard errors (99 %)?"""
    old, new, n = before.get("base_rate"), now.get("base_rate"), now.get("labelled")
    if old is None or new is None or not n:
        return False
    return bool(abs(new - old) >= max(SHIFTED_BASE, 2.6 * math.sqrt(max(old * (1 - old), 1e-6) / n)))


def _drift_line(drifted: Sequence[FeatureDrift], columns: int) -> str:
    if not drifted:
        return f"none of {columns} features drifted"
    named = ", ".join(f"{row.column} {row.effect:.2f}" for row in drifted[:4])
    return f"{len(drifted)} of {columns} features drifted, most {named}"


def _score_line(score: FeatureDrift) -> str:
    return f"the scores {'drifted' if score.drifted else 'stayed'} (effect {score.effect:.2f})"


def _quality_line(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    name = _metric(now)
    said, digits = _LOWER.get(name, "AUROC"), ".3f" if name == "auroc" else ".4g"
    if now.get(name) is None:
        return f"live {said} unknown, too few labels: a concept change cannot be seen yet"
    low, high = now.get(f"{name}_low"), now.get(f"{name}_high")
    span = f" [{low:{digits}}, {high:{digits}}]" if low is not None and high is not None else ""
    labels = f" on {now['labelled']:,} labels ({now['maturity']:.0%} mature)" if "maturity" in now else ""
    then = f", {before[name]:{digits}} at the gate" if before.get(name) is not None else ""
    return f"live {said} {now[name]:{digits}}{span}{labels}{then}"


def _base_line(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("base_rate"), now.get("base_rate")
    if old is None or new is None:
        return "base rate of the labels unknown"
    return f"base rate {old:.1%} → {new:.1%}"


def _after(lost: bool, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    line = _quality_line(before, now)
    if now.get(_metric(now)) is None or before.get(_metric(now)) is None:
        return line
    return f"{line}: " + ("quality was lost, a concept change is not excluded" if lost else "no loss beyond noise")
