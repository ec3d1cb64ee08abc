"""Judges a history: what clients were told, against the prediction log, the journal's routes and the versions themselves. Pure.

It says what contradicts the invariants; an empty list is a history that holds. What nobody was told may or may not be in the log.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.parts.asking import Call
from bench.parts.served import replica_of
from ct.registry.routes import STABLE, Route
from ct.serving.router import assign

Expected = Callable[[str, Mapping[str, Any]], float]
Record = Mapping[str, Any]
TOLERANCE = 1e-6


def broken(calls: Sequence[Call], log: Iterable[Record], known: Mapping[int, Route], expected: Expected) -> list[str]:
    """Every contradiction, in words. `known` are the journal's routes by epoch; `expected(version, row)` is that version's score."""
    rows, labels = _sorted(log)
    answered = [call for call in calls if not call.failed]
    found = _logged(answered, rows) + _invented(calls, rows) + _labelled(answered, labels)
    return found + _routed(answered, rows, known) + _scored(answered, expected) + _back(answered)


def _sorted(log: Iterable[Record]) -> tuple[dict[str, list[Record]], dict[str, set[float]]]:
    rows: dict[str, list[Record]] = defaultdict(list)
    labels: dict[str, set[float]] = defaultdict(set)
    for record in log:
        if record["kind"] == "prediction":
            rows[record["id"]].append(record)
        elif record["kind"] == "label":
            labels[record["id"]].add(record["value"])
    return rows, labels


def _logged(answered: Sequence[Call], rows: Mapping[str, list[Record]]) -> list[str]:
    """Every acknowledged prediction stands in the log once, as the client was told."""
    found = [f"the id {name} was given {count} times" for name, count in Counter(c.id for c in answered).items() if count > 1]
    for call in answered:
        kept = rows.get(call.id, [])
        if len(kept) != 1:
            found.append(f"{call.key} was answered as {call.id}, which is in the log {len(kept)} times")
            continue
        told = {"key": call.key, "version": call.version, "arm": call.arm, "epoch": call.epoch, "score": call.score}
        wrong = {name: (value, kept[0][name]) for name, value in told.items() if kept[0][name] != value}
        if wrong:
            found.append(f"{call.key} was told otherwise than logged (told, logged): {wrong}")
    return found


def _invented(calls: Sequence[Call], rows: Mapping[str, list[Record]]) -> list[str]:
    """The log holds no row that nobody asked for, and none more often than it was sent."""
    sent = {call.key: 1 + len(call.faults) for call in calls}
    kept = Counter(record["key"] for records in rows.values() for record in records)
    return [
        f"{key} is in the log {count} times and was sent {sent.get(key, 0)} times"
        for key, count in kept.items()
        if count > sent.get(key, 0)
    ]


def _labelled(answered: Sequence[Call], labels: Mapping[str, set[float]]) -> list[str]:
    missing = [call for call in answered if call.label is not None and call.label not in labels.get(call.id, ())]
    return [f"the label {call.label} of {call.key} was acknowledged and is not in the log" for call in missing]


def _routed(answered: Sequence[Call], rows: Mapping[str, list[Record]], known: Mapping[int, Route]) -> list[str]:
    """In each epoch one version is stable, and everyone gets the arm that epoch's route gives it."""
    found = []
    if sorted(known) != list(range(min(known, default=0), max(known, default=-1) + 1)):
        found.append(f"the journal's epochs have gaps: {sorted(known)}")
    for call in answered:
        route = known.get(call.epoch)
        if route is None:
            found.append(f"{call.key} was answered in epoch {call.epoch}, which the journal does not know")
            continue
        arms = dict(zip(route.shares, route.arms, strict=True))
        if call.arm not in arms or arms[call.arm].version != call.version:
            found.append(
                f"{call.key} was answered by {call.version} as {call.arm} in epoch {call.epoch}, whose arms are {arms}"
            )
            continue
        meant, kept = assign(route, call.key).arm, rows.get(call.id)
        # Stable may stand in for a candidate that failed, or that the replica did not have: then the log says an error, or a weight of 0.
        stands_in = call.arm == STABLE and kept is not None and bool(kept[0]["error"] or not kept[0]["weight"])
        if call.arm != meant and not stands_in:
            found.append(f"{call.key} belongs to {meant} in epoch {call.epoch} and was answered by {call.arm}")
    return found


def _scored(answered: Sequence[Call], expected: Expected) -> list[str]:
    found, seen = [], {}
    for call in answered:
        shape = (call.version, *(value for name, value in sorted(call.row.items()) if name != "trip"))
        if shape not in seen:
            seen[shape] = expected(call.version, call.row)
        if abs(seen[shape] - call.score) > TOLERANCE:
            found.append(f"{call.key} was told {call.score} by {call.version}, which gives {seen[shape]}")
    return found


def _back(answered: Sequence[Call]) -> list[str]:
    """A replica's epoch never goes back: a call that began after another had ended there sees at least its epoch."""
    by_replica: dict[str, list[tuple[float, int, Call]]] = defaultdict(list)
    for call in answered:
        by_replica[replica_of(call.id)] += [(call.begun, 1, call), (call.ended, 0, call)]
    found, floor = [], dict[str, int]()
    for name, moments in by_replica.items():
        highest = 0
        for _, begins, call in sorted(moments, key=lambda moment: moment[:2]):
            if begins:
                floor[call.id] = highest
                continue
            if call.epoch < floor[call.id]:
                found.append(f"replica {name} answered {call.key} in epoch {call.epoch} after one in {floor[call.id]}")
            highest = max(highest, call.epoch)
    return found


def last_by(calls: Iterable[Call], version: str, epoch: int, decided: float) -> float:
    """Seconds from a decision until the last answer by `version` under a route before `epoch`; 0 when none came after it."""
    late = [call.ended for call in calls if call.version == version and call.epoch < epoch and call.ended > decided]
    return max(late, default=decided) - decided
