"""Keeping a project's stores small: what maintenance would do to every table and folder, and doing it. Nothing that is needed is touched.

Needed is what a branch or tag names, what an unfinished run froze, and what the champion and the candidate were made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ct.clock import duration
from ct.control import runs
from ct.control.act import Actor
from ct.data import catalog, maintenance, predictions
from ct.data.arriving import Reader
from ct.data.maintenance import Cut, Expiry, Limits, Merge, Stray
from ct.data.publishing import Stores
from ct.errors import Conflict, NotFound
from ct.features import build
from ct.pipeline import Table
from ct.registry import versions
from ct.store.files import Files, delete
from ct.store.journal import New

AUDIT = "audit-"


@dataclass(frozen=True)
class TablePlan:
    """What would be done to one table."""

    table: str
    unfinished: int
    merges: tuple[Merge, ...]
    cuts: tuple[Cut, ...]
    branches: tuple[str, ...]
    snapshots: tuple[Expiry, ...]
    strays: tuple[Stray, ...]

    @property
    def expiring(self) -> tuple[int, ...]:
        """The snapshots that go."""
        return tuple(item.snapshot for item in self.snapshots if not item.why)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "table": self.table,
            "unfinished": self.unfinished,
            "merges": [{"files": len(merge.files), "rows": merge.rows} for merge in self.merges],
            "retention": [
                {"shards": list(cut.shards), "rows": cut.rows, "whole_file": cut.whole, "before": _moment(cut.before)}
                for cut in self.cuts
            ],
            "branches": list(self.branches),
            "snapshots": [
                {"snapshot": item.snapshot, "at": item.at.isoformat(timespec="seconds"), "kept": item.why}
                for item in self.snapshots
            ],
            "strays": _strays_json(self.strays),
        }


@dataclass(frozen=True)
class Plan:
    """What would be done to the tables, and the files outside of them that would go."""

    tables: tuple[TablePlan, ...]
    strays: tuple[Stray, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"tables": [table.to_json() for table in self.tables], "strays": _strays_json(self.strays)}


def _strays_json(strays: Iterable[Stray]) -> list[dict[str, Any]]:
    return [{"file": stray.address, "bytes": stray.size, "why": stray.what} for stray in strays]


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")


def stores(act: Actor) -> Stores:
    """The actor's stores of tables."""
    return Stores(act.settings, act.journal, act.warehouse, act.artifacts, Reader())


def plan(act: Actor, *, table: str = "", limits: Limits | None = None) -> Plan:
    """What maintenance would do now, to one table or to all and the folders beside them. Changes nothing."""
    limits = limits or Limits()
    names = [table] if table else [*(item.name for item in act.pipeline.all_tables), predictions.TABLE]
    if table and table != predictions.TABLE:
        act.table(table)
    planned = tuple(_table(act, name, limits) for name in names if act.warehouse.exists(name))
    return Plan(planned, () if table else tuple(_outside(act, limits)))


def _declared(act: Actor, name: str) -> Table | None:
    return next((table for table in act.pipeline.all_tables if table.name == name), None)


def unfinished(act: Actor) -> tuple[runs.Run, ...]:
    """The runs that are still to be carried out."""
    return tuple(run for run in runs.all_runs(act.journal, act.pipeline.name) if not run.outcome)


def needed_runs(act: Actor) -> dict[str, runs.Run]:
    """Why a run's data stay → the run: it is unfinished, or made the champion or the candidate."""
    every = runs.all_runs(act.journal, act.pipeline.name)
    alias = versions.alias(act.journal, act.pipeline.name)
    found = {f"{run.id} is unfinished": run for run in every if not run.outcome}
    served = {run.version: run for run in every if alias.get(run.version) in ("champion", "candidate")}
    return found | {f"{name} is {alias[name]}": run for name, run in served.items()}


def _table(act: Actor, name: str, limits: Limits) -> TablePlan:
    here, now, declared = stores(act), act.clock.now(), _declared(act, name)
    cuts: tuple[Cut, ...] = ()
    if declared is not None and declared.retention:
        before = int((now - duration(declared.retention)).timestamp() * 1e6)
        held = {digest for run in unfinished(act) for digest in run.shards.get(name, ())}
        cuts = maintenance.cuts(catalog.published(act.journal, name), declared.time, before, held)
    cut = {item.file for item in cuts}
    sizes = {path: rows for path, rows in maintenance.sizes(here, name).items() if path not in cut}
    needed = {run.snapshots[name]: why for why, run in needed_runs(act).items() if name in run.snapshots}
    at = {state.id: state.at for state in act.warehouse.history(name)}
    tags, refs = act.warehouse.tags(name), act.warehouse.refs(name)
    branches = {ref: head for ref, head in refs.items() if ref.startswith(AUDIT) and ref not in tags}
    lost = [ref for ref, head in branches.items() if at.get(head, now) < now - limits.safety]  # a publisher may come in between
    snapshots = maintenance.expiries(here, name, needed, limits, now, besides=lost)
    expiring = [item.snapshot for item in snapshots if not item.why]
    return TablePlan(
        name,
        len(maintenance.unsettled(here, name)),
        maintenance.merges(sizes, limits),
        cuts,
        tuple(sorted(lost)),
        snapshots,
        maintenance.strays(here, name, now - limits.safety, besides=expiring),
    )


def _outside(act: Actor, limits: Limits) -> list[Stray]:
    """Files beside the tables that nobody needs: features, training sets, quarantine past retention, half-written files."""
    before, settings = act.clock.now() - limits.safety, act.settings
    found = [stray for stray in features(act) if stray.changed < before.timestamp()]
    live = {run.id for run in unfinished(act)}
    for folder in _folders(settings.home / "work"):
        if not any(folder.name.startswith(f"{run}-") for run in live):
            found += _below(folder, before.timestamp(), "training set of a finished run")
    for table in act.pipeline.all_tables:
        if table.retention:
            past = (act.clock.now() - duration(table.retention)).timestamp()
            place = stores(act).quarantine
            found += [
                Stray(place.address(entry.name), entry.size, entry.changed, "quarantine past retention")
                for entry in place.list(table.name)
                if entry.changed < past
            ]
    for name in ("quarantine", "features", "artifacts"):
        found += maintenance.torn(Files(str(settings.home / name)), before)
    return found


def features(act: Actor) -> tuple[Stray, ...]:
    """The feature files that neither the published shards nor a needed run name, however new."""
    line, published = act.pipeline, {t.name: catalog.published(act.journal, t.name) for t in act.pipeline.all_tables}
    wanted = set(build.names_of(line, published))
    for run in needed_runs(act).values():
        wanted |= build.names_of(
            line, {name: catalog.resolve(act.journal, name, run.shards.get(name, ())) for name in published}
        )
    found = []
    for uri in feature_places(act):
        place = Files(uri)
        found += [
            Stray(place.address(entry.name), entry.size, entry.changed, "features that no run needs")
            for entry in place.list()
            if entry.name not in wanted
        ]
    return tuple(found)


def feature_places(act: Actor) -> tuple[str, ...]:
    """Where feature files lie: in the storage, and beside it what was built before the storage was named."""
    return tuple(sorted({str(act.settings.home / "features"), act.settings.place("features")}))


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _below(folder: Path, before: float, what: str) -> list[Stray]:
    stats = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    if any(stat.st_mtime >= before for _, stat in stats):
        return []
    return [Stray(str(path), stat.st_size, stat.st_mtime, what) for path, stat in stats]


def carry_out(act: Actor, planned: Plan, *, limits: Limits | None = None) -> dict[str, Any]:
    """Do what was planned and journal it. What has changed since is left for the next time. Returns what was done, by table.

    Order: rewritings that were killed, rows past retention, merges, branches of killed publishers, snapshots, files.
    """
    limits, done = limits or Limits(), {}
    for item in planned.tables:
        done[item.table] = _done(act, item, limits)
        act.journal.append(f"maintenance/{item.table}", [New("MaintenanceDone", done[item.table])])
    if planned.strays:
        done[""] = _removed(planned.strays)
        act.journal.append("maintenance/project", [New("MaintenanceDone", done[""])])
    return done


def _done(act: Actor, item: TablePlan, limits: Limits) -> dict[str, Any]:
    here, declared = stores(act), _declared(act, item.table)
    left: list[str] = []
    finished = maintenance.settle(here, item.table)
    for cut in item.cuts:
        _tried(here, declared, [cut.file], left, reason="retention", before=cut.before)
    for merge in item.merges:
        _tried(here, declared, merge.files, left, reason="compaction", name=item.table)
    for branch in item.branches:
        act.warehouse.drop_ref(item.table, branch)
    keep = [state.id for state in act.warehouse.history(item.table) if state.id not in item.expiring]
    expired = act.warehouse.expire(item.table, keep=keep, dry_run=False) if item.expiring else ()
    now = act.clock.now()
    still = {stray.address for stray in maintenance.strays(here, item.table, now - limits.safety)}
    removed = _removed([stray for stray in item.strays if stray.address in still])
    return {
        "finished": finished,
        "rows_past_retention": sum(cut.rows for cut in item.cuts),
        "merged_files": sum(len(merge.files) for merge in item.merges),
        "branches": list(item.branches),
        "expired": list(expired),
        "left_for_next_time": left,
        **removed,
    }


def _tried(
    here: Stores,
    table: Table | None,
    files: Sequence[str],
    left: list[str],
    *,
    reason: str,
    name: str = "",
    before: int | None = None,
) -> None:
    try:
        if table is None:
            maintenance.merge_plain(here, name, files)
        else:
            maintenance.rewrite(here, table, files, reason=reason, before=before)
    except (Conflict, NotFound) as error:  # somebody was quicker; nothing is lost
        left.append(error.found)


def _removed(strays: Iterable[Stray]) -> dict[str, Any]:
    count = size = 0
    for stray in strays:
        delete(stray.address)
        count, size = count + 1, size + stray.size
    return {"removed_files": count, "removed_bytes": size}


def tag(act: Actor, table: str, name: str, snapshot: int | None, *, dry_run: bool) -> dict[str, Any]:
    """Name a snapshot of a table (the newest by default), so that it stays. The journal keeps who and when."""
    act.table(table)
    every = {state.id: state for state in act.warehouse.history(table)}
    found = act.warehouse.snapshot(table) if snapshot is None else snapshot
    if found is None or found not in every:
        raise NotFound(f"table {table!r} has no snapshot {found}", f"one of {list(every)[-5:]}", f"see `ct tables {table}`")
    if not dry_run:
        act.warehouse.tag(table, found, name)
        act.journal.append(f"maintenance/{table}", [New("SnapshotTagged", {"tag": name, "snapshot": found})])
    return {"table": table, "tag": name, "snapshot": found}


def summary(plan: Mapping[str, Any]) -> str:
    """A table's plan in a line."""
    gone = [item for item in plan["snapshots"] if not item["kept"]]
    parts = [
        f"{plan['unfinished']} rewriting(s) to finish" if plan["unfinished"] else "",
        f"{sum(item['files'] for item in plan['merges'])} small files into {len(plan['merges'])}" if plan["merges"] else "",
        f"{sum(item['rows'] for item in plan['retention']):,} rows past retention" if plan["retention"] else "",
        f"{len(plan['branches'])} branch(es) of killed publishers" if plan["branches"] else "",
        f"{len(gone)} of {len(plan['snapshots'])} snapshots" if gone else "",
        f"{len(plan['strays'])} files, {sum(item['bytes'] for item in plan['strays']):,} bytes" if plan["strays"] else "",
    ]
    return "; ".join(filter(None, parts))
