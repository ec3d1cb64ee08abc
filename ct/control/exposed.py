"""What a rollout's journal says, as Prometheus samples: phase, e-values against their limits, rollbacks, durations. Reads only."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter

from ct.rollout import state
from ct.rollout.state import Rollout
from ct.serving import exposition
from ct.serving.exposition import Sample, families, histogram
from ct.store.journal import Journal

PHASES = (
    "pending", "warming", "shadowing", "progressing", "baking", "paused", "holding", "promoting", "rolling_back",
    "promoted", "rolled_back", "aborted", "failed",
)  # fmt: skip
BOUNDS = (60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0)
"""Upper bounds of a rollout's duration, seconds: a minute to a week."""

FAMILIES = families(
    ("ct_rollout_phase", "gauge", "1 for the phase that the endpoint's latest rollout is in, or its outcome."),
    ("ct_rollout_evalue", "gauge", "Evidence of harm at the latest look at the rollout in progress, by metric."),
    ("ct_rollout_evalue_limit", "gauge", "Where that evidence raises the alarm and rolls back, by metric."),
    (
        "ct_rollout_assignment_ratio",
        "gauge",
        "What the canary got over what its weights promised, while both arms had a share.",
    ),
    ("ct_rollout_assignment_evalue", "gauge", "Evidence that the split is not what the weights say."),
    (
        "ct_rollout_assignment_evalue_limit",
        "gauge",
        "From where, and when it is also off by a fifth, the split is called broken.",
    ),
    ("ct_rollout_segments_harmed", "gauge", "Pairs of a metric and a segment's value that e-BH calls harmed."),
    (
        "ct_rollout_worth_difference",
        "gauge",
        "What a row is worth more on the canary than on stable: bound is estimate, low or high.",
    ),
    (
        "ct_rollbacks_total",
        "counter",
        "Rollouts that were rolled back or aborted, by the metric that did it, or by_hand, deadline, circuit, other.",
    ),
    ("ct_rollback_timestamp_seconds", "gauge", "When the latest rollout was rolled back or aborted; 0 for never."),
    ("ct_rollout_duration_seconds", "histogram", "From start to end of each rollout, by its outcome."),
)


def text(journal: Journal, endpoint: str) -> str:
    """Everything about an endpoint's rollouts in the Prometheus text format."""
    return exposition.text(FAMILIES, samples(journal, endpoint))


def samples(journal: Journal, endpoint: str) -> list[Sample]:
    """Everything about an endpoint's rollouts."""
    told, where = state.history(journal, endpoint), {"endpoint": endpoint}
    ended = [rollout for rollout in told if rollout.ended is not None]
    back = [rollout for rollout in ended if rollout.outcome in ("rolled_back", "aborted")]
    reasons = Counter(map(reason, back))
    made: list[Sample] = [("ct_rollbacks_total", {**where, "reason": name}, count) for name, count in sorted(reasons.items())]
    latest = max((rollout.ended.timestamp() for rollout in back if rollout.ended is not None), default=0.0)
    made.append(("ct_rollback_timestamp_seconds", where, latest))
    for outcome in sorted({rollout.outcome for rollout in ended}):
        seconds = [_seconds(rollout) for rollout in ended if rollout.outcome == outcome]
        counts = Counter(bisect_left(BOUNDS, took) for took in seconds)
        labels = {**where, "status": outcome}
        filled = [counts[at] for at in range(len(BOUNDS) + 1)]
        made += histogram("ct_rollout_duration_seconds", labels, BOUNDS, filled, sum(seconds))
    return [*made, *(_current(told[-1], where) if told else [])]


def reason(rollout: Rollout) -> str:
    """Why a rollout was taken back: the word that was kept, else the metric whose evidence was over its limit, the furthest of them."""
    if rollout.reason:
        return rollout.reason
    if rollout.outcome == "aborted":
        return "by_hand"
    over = [item for item in rollout.evidence if item["e_value"] >= item["limit"]]
    return str(max(over, key=lambda item: float(item["e_value"]))["metric"]) if over else "other"


def _current(rollout: Rollout, where: dict[str, str]) -> list[Sample]:
    now = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rollout.shown).lower() if rollout.active else rollout.outcome
    known = PHASES if now in PHASES else (*PHASES, now)
    made: list[Sample] = [("ct_rollout_phase", {**where, "phase": phase}, int(phase == now)) for phase in known]
    if rollout.active:
        for item in rollout.evidence:
            labels = {**where, "metric": str(item["metric"])}
            made.append(("ct_rollout_evalue", labels, float(item["e_value"])))
            made.append(("ct_rollout_evalue_limit", labels, float(item["limit"])))
        made += _beside(rollout, where)
    return made


def _beside(rollout: Rollout, where: dict[str, str]) -> list[Sample]:
    """What the latest look says beside its evidence of harm."""
    made: list[Sample] = []
    if rollout.split is not None:
        for name, field in (("ratio", "ratio"), ("evalue", "e_value"), ("evalue_limit", "limit")):
            made.append((f"ct_rollout_assignment_{name}", where, float(rollout.split[field])))
    if rollout.segments is not None:
        made.append(("ct_rollout_segments_harmed", where, sum(bool(row["harmed"]) for row in rollout.segments["rows"])))
    for gain in rollout.gains:
        for bound, field in (("estimate", "difference"), ("low", "low"), ("high", "high")):
            labels = {**where, "metric": str(gain["metric"]), "bound": bound}
            made.append(("ct_rollout_worth_difference", labels, float(gain[field])))
    return made


def _seconds(rollout: Rollout) -> float:
    assert rollout.ended is not None, "only of one that ended"
    return (rollout.ended - rollout.started).total_seconds()
