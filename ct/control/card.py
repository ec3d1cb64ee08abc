"""The model card of a version: what it is for, what it was made from, what it showed and where it ends. Folds of the journal only; as plain data."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ct.control import runs
from ct.control.place import Place
from ct.data import catalog
from ct.errors import Untrusted
from ct.features.encode import Encoder
from ct.registry import files, versions
from ct.registry.files import ModelSpec


def card(here: Place, name: str) -> dict[str, Any]:
    """The card of version `name` as plain data; `markdown` and `plot` in ct/control/drawing.py make it readable. Raises NotFound.

    Owner and intended use are the pipeline file's as it is now; everything else is what was recorded when the version was made.
    """
    line = here.pipeline
    version = versions.get(here.journal, line.name, name)
    run = runs.get(here.journal, line.name, version.run)
    facts = dict(run.facts) if run else {}
    made = files.fetch(here.artifacts, version.manifest)
    spec = ModelSpec.from_bytes(made[files.SPEC])
    encoder = Encoder.from_json(made[files.ENCODER])
    report = dict(facts.get("report", {}))
    return {
        "model": {
            "pipeline": line.name,
            "version": name,
            "alias": versions.alias(here.journal, line.name)[name],
            "owner": line.owner or "nobody",
            "intended_use": line.description or "not stated: add description= to the pipeline",
            "predicts": _question(spec),
            "objective": spec.objective["kind"],
            "registered": version.at.isoformat(timespec="seconds"),
            "pipeline_changed_since": run is not None and run.pipeline != line.fingerprint(),
        },
        "verdict": {
            "decision": version.verdict,
            "reasons": list(version.reasons),
            "findings": report.get("findings", []),
            "warnings": report.get("warnings", []),
            "overruled_by": version.override or "nobody",
        },
        "data": _data(here, run, facts, report),
        "features": [
            {"column": column, "kind": "category" if column in encoder.texts else "numeric"} for column in encoder.names
        ],
        "requests": {"columns": dict(spec.request), "personal": {table: dict(kinds) for table, kinds in spec.personal.items()}},
        "metrics": _metrics(version, report),
        "training": _training(run, facts) | {"calibration": dict(spec.calibration)},
        "lineage": _lineage(version, run, facts) | {"signed_by": _signature(here, version.manifest)},
        "limits": _limits(report, facts),
        "reproduce": f"ct reproduce {name}",
    }


def _training(run: runs.Run | None, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": dict(run.params) if run else {},
        "chosen_by_search": facts.get("settings", {}),
        "seed": run.seed if run else None,
        "seeds": facts.get("seeds"),
        "start": facts.get("start", {}),
        "weighed": facts.get("weighed", []),
        "contract": facts.get("contract", {}),
    }


def _lineage(version: versions.Version, run: runs.Run | None, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": version.run,
        "cause": run.cause if run else "",
        "manifest": version.manifest,
        "weights": facts.get("weights", ""),
        "code": run.code if run else "",
        "pipeline": run.pipeline if run else "",
        "features": facts.get("features", ""),
    }


def _question(spec: ModelSpec) -> str:
    label = spec.label
    kind = spec.objective["kind"]
    if kind == "binary":
        return f"the probability that {label['column']} is above {label['above']:g}, known at {label['known_at']}"
    if kind == "classes":
        return f"which of {', '.join(spec.objective['classes'])} {label['column']} is, known at {label['known_at']}"
    told = f"{label['column']}, known at {label['known_at']}"
    return told if kind == "number" else f"the quantiles {', '.join(f'{q:g}' for q in spec.objective['quantiles'])} of {told}"


def _data(here: Place, run: runs.Run | None, facts: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    tables = {}
    for table, digests in (run.shards if run else {}).items():
        known = {shard.sha256: shard for shard in catalog.arrived(here.journal, table)}
        shards = [known[digest] for digest in digests if digest in known]
        tables[table] = {
            "snapshot": run.snapshots.get(table) if run else None,
            "rows": sum(shard.rows for shard in shards),
            "from": _moment(min((shard.time_min for shard in shards), default=None)),
            "until": _moment(max((shard.time_max for shard in shards), default=None)),
            "shards": [{"name": shard.shard, "sha256": shard.sha256, "rows": shard.rows} for shard in shards],
        }
    return {
        "tables": tables,
        "rows_trained": facts.get("rows"),
        "rows_held_for_calibration": facts.get("rows_held"),
        "rows_judged": facts.get("rows_judged"),
        "judged_in": report.get("window", ""),
        "maturity": report.get("maturity", {}),
        "selection": facts.get("selection", {}),
        "labels": facts.get("labels", {}),
    }


def _metrics(version: versions.Version, report: dict[str, Any]) -> dict[str, Any]:
    whole = report.get("candidate") or dict(version.metrics)
    return {
        "candidate": {name: value for name, value in whole.items() if not name.startswith("base_") or name == "base_rate"},
        "baseline": {
            name.removeprefix("base_"): value
            for name, value in whole.items()
            if name.startswith("base_") and name != "base_rate"
        },
        "champion": report.get("champion"),
        "gains": report.get("gains", []),
        "challengers": report.get("challengers", []),
        "by_slice": report.get("segments", {}),
        "over_time": report.get("over_time", []),
        "curve": report.get("curve", []),
        "threshold": report.get("threshold"),
        "confidence": report.get("confidence"),
        "blocks": report.get("blocks"),
        "latency_ms": report.get("latency_ms"),
        "size_mb": report.get("size_mb"),
    }


def _limits(report: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """What the numbers do not say, as far as the records show it."""
    found = [f"All figures are of {report['window']}; they say nothing of other times."] if report.get("window") else []
    found.append("Association is not cause: a score says what tends to happen, not what an action would change.")
    maturity = report.get("maturity", {})
    if maturity.get("unlabelled"):
        found.append(f"{maturity['unlabelled']:,} rows of the window never got a label; the figures are without them.")
    if maturity.get("immature"):
        found.append(f"{maturity['immature']:,} newer rows were left out: their labels were not all known yet.")
    for finding in report.get("findings", []):
        if left := finding.get("numbers", {}).get("not_judged"):
            found.append(f"Not judged, too few rows: {', '.join(left[:20])}{' and more' if len(left) > 20 else ''}.")
    if facts.get("selection"):
        found.append(f"It was trained on a choice of the rows: {facts['selection'].get('rule', '')}.")
    if report.get("latency_ms") is not None:
        found.append("The latency is that of the model alone, without looking up history and without HTTP.")
    return found


def _signature(here: Place, manifest: str) -> str:
    try:
        return here.artifacts.signed_by(manifest)
    except Untrusted:
        return "nobody whose key is trusted here"


def _moment(us: int | None) -> str:
    return "" if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="minutes")


def to_json(found: dict[str, Any]) -> str:
    """A card as JSON text."""
    return json.dumps(found, indent=2, default=str, ensure_ascii=False)
