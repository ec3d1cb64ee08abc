"""Watching: drift of published shards against the champion's training data, and live quality by version from the prediction log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ct.control import runs
from ct.control.place import Place
from ct.control.rows import profiled_by
from ct.data import catalog, labels, predictions
from ct.data.columns import to_columns
from ct.data.profile import Profiles
from ct.errors import NotFound
from ct.features import build
from ct.ids import describe
from ct.monitoring import diagnose, drift, performance
from ct.monitoring.alerts import Alert, send
from ct.registry import routes
from ct.roles import Columns
from ct.store.journal import Journal, New

_WORST = 10
"""So many drifted features of slices are recorded."""


def stream(pipeline: str) -> str:
    """The journal stream of drift checks."""
    return f"drift/{pipeline}"


def drifts(journal: Journal, pipeline: str) -> list[dict[str, Any]]:
    """Every comparison made, oldest first."""
    return [{"at": event.at.isoformat(), **event.data} for event in journal.read(stream(pipeline), types=["DriftChecked"])]


def champion_run(place: Place) -> runs.Run | None:
    """The run that made the stable version, None before the first deployment."""
    route = routes.current(place.journal, place.pipeline.name)
    if route is None:
        return None
    known = runs.all_runs(place.journal, place.pipeline.name)
    return next((run for run in known if run.version == route.stable.version), None)


def unchecked(place: Place) -> tuple[str, ...]:
    """SHA-256 of the shards that landed after the champion's data and were not compared with it yet."""
    run = champion_run(place)
    if run is None:
        return ()
    done = {(item["sha256"], item["reference"]) for item in drifts(place.journal, place.pipeline.name)}
    seen = set(run.shards[place.pipeline.table.name])
    return tuple(
        shard.sha256
        for shard in catalog.published(place.journal, place.pipeline.table.name)
        if shard.sha256 not in seen and (shard.sha256, run.version) not in done
    )


def check(place: Place, sha256: str) -> dict[str, Any]:
    """Compare one shard's features with the champion's training data, record it, alert when something drifted."""
    line, run = place.pipeline, champion_run(place)
    assert run is not None, "unchecked() names shards only where there is a champion"
    known = {table.name: list(catalog.published(place.journal, table.name)) for table in line.all_tables}
    shard = next(item for item in known[line.table.name] if item.sha256 == sha256)
    data = {"sha256": sha256, **_compared(place, run, shard.shard, shard.rows, _features(place, known, shard))}
    place.journal.append(stream(line.name), [New("DriftChecked", data)])
    if data["drifted"]:
        alert = Alert(
            tier="WARN",
            title=f"{len(data['drifted'])} feature(s) of {shard.shard} drifted from {run.version}'s training data",
            owner=line.owner,
            detail=data["cause"],
            key=f"drift/{run.version}/{shard.shard}",
        )
        send(alert, pipeline=line.name, journal=place.journal, settings=place.settings)
    return data


def live_drift(place: Place) -> dict[str, Any]:
    """Compare the features of what the champion was asked live with its training data. Changes nothing.

    Returns what `check` records for a shard, with shard "live traffic". Raises NotFound before the first live answer.
    """
    line, run = place.pipeline, champion_run(place)
    asked = [
        r["features"]
        for r in records(place)
        if run and r["kind"] == "prediction" and r["version"] == run.version and not r["error"]
    ]
    if run is None or not asked:
        raise NotFound("the champion has not answered anything yet", "live traffic", "send predictions first")
    current = {
        column.name: np.array([row[column.name] for row in asked], dtype=object if column.kind == "category" else np.float64)
        for column in line.outputs
    }
    return _compared(place, run, "live traffic", len(asked), current)


def _compared(place: Place, run: runs.Run, name: str, rows: int, features: Columns) -> dict[str, Any]:
    """The features called `name` against the run's training data, whole and by slice, with the cause where some drifted as a whole."""
    reference = Profiles.from_bytes(place.artifacts.get(run.facts["profile"]))
    current = Profiles.of(features, profiled_by(place.pipeline), reference)
    found = drift.compare(reference.whole, current.whole)
    drifted = sorted((row for row in found if row.drifted), key=lambda row: -row.effect)
    live = live_quality(place).get(run.version)
    cause = diagnose.explain(found, performance_before=_judged(run), performance_now=live) if drifted else None
    return {
        "shard": name,
        "reference": run.version,
        "rows": rows,
        "features": describe(found),
        "drifted": [row.column for row in drifted],
        "slices": describe(drift.compare_slices(reference, current).worst(_WORST)),
        "cause": cause.text if cause else "",
        "evidence": list(cause.evidence) if cause else [],
        "live": live,
    }


def _features(place: Place, known: Mapping[str, list[Any]], shard: Any) -> dict[str, Any]:
    line = place.pipeline
    made = build.build(line, known, folder=place.settings.place("features"))
    table = build.read(made, start=shard.time_min, stop=shard.time_max + 1)
    return to_columns(table.select([column.name for column in line.outputs]))


def _judged(run: runs.Run) -> dict[str, float]:
    return dict(run.facts["report"]["candidate"])


def records(place: Place) -> Iterable[dict[str, Any]]:
    """Every record of the prediction log, committed or still in the inbox."""
    return predictions.everything(place.settings)


def live_quality(place: Place) -> dict[str, dict[str, Any]]:
    """{version: the metrics of monitoring/performance.py} of what was answered live, as far as its truth has had its time.

    That is the age at which 99 % of the labels were known when the version was trained. `young` counts the younger answers, which are left
    out: of their truths only the early ones are known.
    """
    joined, objective = labels.join(records(place)), place.pipeline.label.objective
    now = max((max(row.t, row.known_at or 0) for row in joined.rows), default=0)
    delays = _delays(place)
    quality = {}
    for version in sorted({row.version for row in joined.rows}):
        rows = [row for row in joined.rows if row.version == version]
        old = performance.cohort([row.event_time for row in rows], now, delays.get(version, 0))
        mature = [row for row, kept in zip(rows, old, strict=True) if kept]
        quality[version] = performance.live(*labels.arrays(mature, objective), objective) | {"young": len(rows) - len(mature)}
    return quality


def _delays(place: Place) -> dict[str, int]:
    """For each version the age in microseconds at which a truth was known, as its run learned it from the training rows."""
    known = runs.all_runs(place.journal, place.pipeline.name)
    told = {run.version: run.facts.get("report", {}).get("maturity", {}).get("hours", 0.0) for run in known if run.version}
    return {version: round(hours * 3.6e9) for version, hours in told.items()}
