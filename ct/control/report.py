"""What a person asks of the journal: status, and why a prediction was made. Folds only; nothing is changed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ct.control import reproducing, runs, watching
from ct.control.place import Place
from ct.data import catalog, predictions
from ct.errors import CtError, NotFound
from ct.monitoring.performance import HEADLINE
from ct.objectives import Objective
from ct.pipeline import Pipeline
from ct.registry import files, held, routes, versions
from ct.serving import answers
from ct.settings import Settings
from ct.store import lineage
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from ct.store.signing import Keys


def place(settings: Settings, pipeline: Pipeline) -> Place:
    """The stores of a project, opened for reading."""
    return Place(
        pipeline, settings, Journal(settings.database), Artifacts(settings.place("artifacts"), Keys(settings.trusted_keys))
    )


def status(settings: Settings, pipeline: Pipeline, *, verify: bool = False) -> dict[str, Any]:
    """Tables, versions, route, runs and alerts. `verify` recomputes the hash chain and the hashes of all model files."""
    here = place(settings, pipeline)
    journal, name = here.journal, pipeline.name
    data: dict[str, Any] = {}
    if verify:
        data["verified"] = {"events": journal.verify(), "files": _verify_files(here)}
    route = routes.current(journal, name)
    alias, live = versions.alias(journal, name), watching.live_quality(here)
    held_by = _runtimes(here)
    return data | {
        "pipeline": name,
        "tables": [_table(journal, table.name) for table in pipeline.all_tables],
        "versions": [
            _version(item, alias, live, pipeline.label.objective) | held_by.get(item.manifest, {"runtime": settings.runtime})
            for item in versions.all_versions(journal, name)
        ],
        "route": {
            "epoch": route.epoch,
            "stable": route.stable.version,
            "canary": f"{route.canary.version} {route.share:.0%}" if route.canary else None,
        }
        if route
        else None,
        "runs": [
            {
                "run": run.id,
                "cause": run.cause,
                "outcome": run.outcome or "unfinished",
                "state": run.state,
                "start": run.facts.get("start", {}).get("from", "scratch"),
                "seeds": run.facts.get("seeds", {}),
            }
            for run in runs.all_runs(journal, name)
        ],
        "alerts": [
            {"at": event.at.isoformat(timespec="seconds"), **event.data}
            for event in journal.read(f"alert/{name}", types=["AlertRaised"])
        ][-5:],
    }


def _runtimes(here: Place) -> dict[str, dict[str, str]]:
    """By manifest, the runtime that holds a version where replicas told of one, and why where it is not the one asked for."""
    told, wanted = held.told(here.journal, here.pipeline.name), here.settings.runtime
    found = {manifest: item for manifest, item in told.items() if item.wanted == wanted}
    return {
        manifest: {"runtime": item.runtime, **({"instead": item.instead} if item.instead else {})}
        for manifest, item in found.items()
    }


def _verify_files(here: Place) -> int:
    known = versions.all_versions(here.journal, here.pipeline.name)
    return sum(len(files.fetch(here.artifacts, version.manifest)) for version in known)


def _table(journal: Journal, name: str) -> dict[str, Any]:
    shards = catalog.published(journal, name)
    newest = max((shard.time_max for shard in shards), default=None)
    return {
        "table": name,
        "rows": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "until": None if newest is None else _moment(newest),
        "quarantined": [item["shard"] for item in catalog.quarantined(journal, name)],
    }


def _version(item: versions.Version, alias: dict[str, str], live: dict[str, Any], objective: Objective) -> dict[str, Any]:
    seen, name = live.get(item.name, {}), HEADLINE[objective.kind]
    judged = {"auroc": item.metrics.get("auroc"), "ece": item.metrics.get("ece")} if objective.kind == "binary" else {}
    return {
        "version": item.name,
        "alias": alias[item.name],
        "verdict": item.verdict + (" (overruled)" if item.override else ""),
        **judged,
        name: item.metrics.get(name),
        f"live_{name}": seen.get(name),
        "metric": name,
        "labelled": seen.get("labelled"),
        "run": item.run,
    }


def why(settings: Settings, pipeline: Pipeline, prediction: str) -> dict[str, Any]:
    """From a prediction back to the rows it was learned from. Raises NotFound for an unknown id."""
    here = place(settings, pipeline)
    found, label = _find(here, prediction)
    objective = pipeline.label.objective
    version = versions.get(here.journal, pipeline.name, found["version"])
    run = next(item for item in runs.all_runs(here.journal, pipeline.name) if item.id == version.run)
    entry = next(item for item in routes.history(here.journal, pipeline.name) if item.route.epoch == found["epoch"])
    graph = lineage.read(here.journal)
    shards = [
        made for made in lineage.origins(graph, f"version/{pipeline.name}/{version.name}") if made.node.startswith("shard/")
    ]
    return {
        "prediction": {
            "id": prediction,
            "answered": _moment(found["t"]),
            **answers.read(objective, found),
            "arm": found["arm"],
            "version": found["version"],
            "latency_ms": found["latency_ms"],
            "truth": _truth(objective, label),
            **{f"segment {key}": value for key, value in found["context"].items()},
        },
        "asked": found["request"],
        "features": found["features"],
        "route": {"epoch": found["epoch"], "in force since": entry.at.isoformat(timespec="seconds"), "because": entry.cause},
        "version": {
            "manifest": version.manifest,
            "signed by": _signed(here, version),
            "made again": reproducing.last(here, version.name) or "never",
            "gate": version.verdict,
            "overruled by": version.override or "nobody",
            **{f"because ({i})": reason for i, reason in enumerate(version.reasons, 1)},
            **{key: value for key, value in version.metrics.items()},
        },
        "run": {
            "id": run.id,
            "cause": run.cause,
            "seed": run.seed,
            "code": run.code,
            "pipeline": run.pipeline,
            "features": run.facts["features"],
            "weights": run.facts["weights"],
            "training set": run.facts.get("training_set", ""),
            "rows": run.facts["rows"],
            "settings": run.facts.get("settings", {}),
            "lease epoch": run.facts.get("epoch", ""),
            **{f"snapshot {table}": snapshot for table, snapshot in run.snapshots.items()},
            **{f"contract {key}": value for key, value in run.facts["contract"].items()},
        },
        "rows": {
            made.node: f"{made.data['rows']:,} rows, landed {made.at:%Y-%m-%d %H:%M:%S} by {made.actor}" for made in shards
        },
    }


def _signed(here: Place, version: versions.Version) -> str:
    """The key that signed a version's files, and when a person did; or why that does not count."""
    try:
        key = f"key {here.artifacts.signed_by(version.manifest)}"
    except CtError as error:
        return error.found
    by_hand = [event for event in here.journal.read(versions.stream(here.pipeline.name), types=["VersionSigned"])]
    said = [f", by hand of {event.actor}: {event.data['reason']}" for event in by_hand if event.data["version"] == version.name]
    return key + "".join(said[-1:])


def _truth(objective: Objective, label: dict[str, Any] | None) -> Any:
    if label is None:
        return "not known yet"
    told = label["label"]
    return told if told is None or not objective.classes else objective.classes[int(told)]


def _find(here: Place, prediction: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    found, label = None, None
    for record in predictions.everything(here.settings):
        if record["id"] == prediction:
            if record["kind"] == "prediction":
                found = record
            else:
                label = record
    if found is None:
        raise NotFound(f"there is no prediction {prediction!r}", "an id from an answer's prediction_id", "check the spelling")
    return found, label


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds")
