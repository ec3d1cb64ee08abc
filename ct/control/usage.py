"""The feature catalogue's living half: which versions use a feature, since when they are live, and how its values changed over time."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ct.control import runs
from ct.control.place import Place
from ct.data.profile import Numbers, Profile
from ct.errors import Corrupt, NotFound
from ct.features import catalog
from ct.features.declare import from_spec, own_features
from ct.registry import files, routes, versions
from ct.registry.files import ModelSpec

FREQUENT = 3


def features(place: Place) -> list[dict[str, Any]]:
    """Every feature column of the pipeline with the versions that use it."""
    used = _uses(place)
    return [
        {**entry.to_json(), "tables": list(entry.reads), "versions": _versions(place, entry, used)}
        for entry in catalog.entries(place.pipeline)
    ]


def feature(place: Place, name: str) -> dict[str, Any]:
    """One feature column: its entry, where its values are from, who uses it, and its profile in each version's training rows, oldest first.

    Raises NotFound naming those there are.
    """
    known = {entry.name: entry for entry in catalog.entries(place.pipeline)}
    if name not in known:
        near = get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else "see `ct features`"
        raise NotFound(f"there is no feature {name!r}", f"one of {sorted(known)}", remedy)
    entry, used = known[name], _uses(place)
    made = {run.version: run for run in runs.all_runs(place.journal, place.pipeline.name) if run.outcome == "registered"}
    newest = made.get(next((version for version in reversed(used) if name in used[version]), ""))
    lineage = {
        "feature_set": newest.facts.get("features") if newest else None,
        "shards": {table: len(newest.shards.get(table, ())) for table in (place.pipeline.table.name, *entry.reads)}
        if newest
        else {},
        "until": newest.data_time.isoformat() if newest else None,
    }
    profiles = [found for version, run in made.items() if (found := _profile(place, version, run, name)) is not None]
    return {**entry.to_json(), "lineage": lineage, "versions": _versions(place, entry, used), "profiles": profiles}


def _uses(place: Place) -> dict[str, dict[str, str]]:
    """{version: {feature column: hash of its definition}}, oldest version first."""
    own, used = own_features(place.pipeline.features), dict[str, dict[str, str]]()
    for version in versions.all_versions(place.journal, place.pipeline.name):
        spec = ModelSpec.from_bytes(files.fetch(place.artifacts, version.manifest)[files.SPEC])
        used[version.name] = {}
        for item in spec.features:
            try:
                columns = from_spec(item, own).outputs()
            except Corrupt:  # a function of its own that has changed or gone: it is another feature than the pipeline's
                continue
            used[version.name] |= {column.name: catalog.spec_hash(item) for column in columns}
    return used


def _versions(place: Place, entry: catalog.Entry, used: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """`same` tells whether the version computes it as the pipeline does now; `live_since` when a route first gave it traffic."""
    alias = versions.alias(place.journal, place.pipeline.name)
    live: dict[str, str] = {}
    for item in routes.history(place.journal, place.pipeline.name):
        for arm in item.route.arms:
            live.setdefault(arm.version, item.at.isoformat(timespec="seconds"))
    return [
        {"version": name, "alias": alias[name], "live_since": live.get(name), "same": found[entry.name] == entry.hash}
        for name, found in used.items()
        if entry.name in found
    ]


def _profile(place: Place, version: str, run: runs.Run, name: str) -> dict[str, Any] | None:
    digest = run.facts.get("profile")
    found = Profile.from_bytes(place.artifacts.get(str(digest))).columns.get(name) if digest else None
    if found is None:
        return None
    rows = found.count + found.missing
    made: dict[str, Any] = {"of": version, "until": run.data_time.isoformat(timespec="seconds"), "rows": rows}
    made |= {
        "missing": found.missing / rows if rows else None,
        "mean": None,
        "p05": None,
        "p50": None,
        "p95": None,
        "frequent": [],
    }
    if isinstance(found, Numbers):
        quantiles = found.quantiles(0.05, 0.5, 0.95)
        return (
            made
            | {"mean": found.mean if found.count else None}
            | dict(zip(("p05", "p50", "p95"), quantiles or (), strict=False))
        )
    frequent = sorted(found.counts.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]
    return made | {"frequent": [f"{value} {count / rows:.0%}" for value, count in frequent if count]}
