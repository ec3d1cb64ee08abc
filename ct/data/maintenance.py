"""What keeps a table small and quick: merging its small files, dropping rows past retention, expiring snapshots, removing what nothing needs.

Planning changes nothing. A rewriting is entered in the journal first, then carried out in Iceberg: killed in between, `settle` finishes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ct.data import catalog, predictions, profiled, shards
from ct.data.columns import NO_TIME, kind_of, to_columns
from ct.data.iceberg import ATTEMPT, NAMESPACE, tries
from ct.data.profile import Profiles
from ct.data.publishing import Stores, sliced
from ct.data.snapshots import Staged
from ct.data.tables import ShardFile
from ct.errors import Conflict
from ct.ids import canonical, sha256
from ct.pipeline import Table
from ct.store.files import Files, open_input
from ct.store.journal import New


@dataclass(frozen=True)
class Limits:
    """When there is something to do. A file of fewer than `small` rows is small; `least` of them side by side are merged, up to `most` rows.

    Of the snapshots the newest `keep` stay, and those younger than `age`. A file that nothing needs is removed once it is older than
    `safety`, which must be longer than the longest write.
    """

    small: int = 50_000
    least: int = 4
    most: int = 1_000_000
    keep: int = 10
    age: timedelta = timedelta(days=7)
    safety: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Merge:
    """Small files side by side that become one."""

    files: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class Cut:
    """A file with `rows` rows of event time before `before` (microseconds), which may go; `whole` when nothing else is in it."""

    file: str
    shards: tuple[str, ...]
    rows: int
    whole: bool
    before: int


@dataclass(frozen=True)
class Expiry:
    """A snapshot, and why it stays; one without a reason expires."""

    snapshot: int
    at: datetime
    why: str


@dataclass(frozen=True)
class Stray:
    """A file that nothing needs, and what it was."""

    address: str
    size: int
    changed: float
    what: str


def by_file(published: Iterable[ShardFile]) -> dict[str, tuple[ShardFile, ...]]:
    """The shards in each file, in the order of their rows there; files by their first event time."""
    found: dict[str, list[ShardFile]] = {}
    for shard in sorted(published, key=lambda shard: (shard.time_min, shard.time_max, shard.sha256)):
        found.setdefault(shard.path, []).append(shard)
    return {path: tuple(sorted(held, key=lambda shard: shard.start)) for path, held in found.items()}


def sizes(stores: Stores, table: str) -> dict[str, int]:
    """The rows of each file of the newest snapshot: by event time, or as Iceberg lists them where the table has no shards."""
    if published := catalog.published(stores.journal, table):
        return {path: sum(shard.rows for shard in held) for path, held in by_file(published).items()}
    found = {}
    for path in stores.warehouse.files(table):
        with open_input(path) as source:
            found[path] = pq.read_metadata(source).num_rows
    return found


def merges(rows: Mapping[str, int], limits: Limits) -> tuple[Merge, ...]:
    """The runs of small files in the order given that are worth one file each. Pure."""
    made: list[Merge] = []
    for small, run in groupby(rows.items(), key=lambda item: item[1] < limits.small):
        group: list[tuple[str, int]] = []
        for file in run if small else ():
            if sum(count for _, count in group) + file[1] > limits.most:
                made.append(_merge(group))
                group = []
            group.append(file)
        made.append(_merge(group))
    return tuple(merge for merge in made if len(merge.files) >= limits.least)


def _merge(group: Sequence[tuple[str, int]]) -> Merge:
    return Merge(tuple(path for path, _ in group), sum(count for _, count in group))


def cuts(published: Sequence[ShardFile], time: str, before: int, held: Iterable[str] = ()) -> tuple[Cut, ...]:
    """The files with rows of event time before `before`; not those with a shard whose SHA-256 is `held`."""
    made, kept = [], frozenset(held)
    for path, found in by_file(published).items():
        old = [shard for shard in found if shard.time_min < before]
        if not old or any(shard.sha256 in kept for shard in found):
            continue
        rows = sum(_older(shard, time, before) for shard in old)
        whole = rows == sum(shard.rows for shard in found)
        made.append(Cut(path, tuple(shard.shard for shard in old), rows, whole, before))
    return tuple(cut for cut in made if cut.rows)


def _older(shard: ShardFile, time: str, before: int) -> int:
    """How many of the shard's rows are older; it is read only where the catalogue cannot tell."""
    if shard.time_max < before:
        return shard.rows
    return int((to_columns(shards.read(shard, [time]))[time] < before).sum())


def rewrite(stores: Stores, table: Table, files: Iterable[str], *, reason: str, before: int | None = None) -> bool:
    """Put the shards that lie in `files` into one new file, without erased rows and those of event time before `before`.

    The shards stay what they are; one that loses rows has another identity and profile. False when no shard lies in any of the files.
    Raises Conflict when the table changes meanwhile; nothing is lost then.
    """
    position = stores.journal.version(catalog.stream(table.name))
    held = by_file(shard for shard in catalog.arrived(stores.journal, table.name) if shard.path)
    files = sorted(files)
    moving = [shard for path in held for shard in held[path] if path in files]
    if not moving:
        return False
    if lost := set(files) - {shard.path for shard in moving}:
        raise Conflict(f"{min(lost)} has been rewritten meanwhile", "files that hold shards", "plan anew")
    name = sha256(canonical([table.name, reason, before, files, [[shard.identity, shard.rows] for shard in moving]]))
    like = profiled.reference(stores.journal, stores.artifacts, table.name)
    kept, layout, gone, start = [], {}, [], 0
    for shard in moving:
        rows, changed = _left(shard, table, reason, before)
        if not rows.num_rows:
            gone.append(shard.sha256)
            continue
        if changed or shard.without:
            profile = Profiles.of(rows, table.slices, like)
            changed["profile"] = stores.artifacts.put(profile.to_bytes())
        layout[shard.sha256] = {**changed, "start": start, "rows": rows.num_rows}
        kept.append(rows)
        start += rows.num_rows
    staged = stores.warehouse.stage(table.name, joined(kept), name[:32]) if kept else None
    event = {
        "rewrite": name,
        "reason": reason,
        "file": staged.address if staged else "",
        "file_sha256": staged.sha256 if staged else "",
        "replaces": files,
        "shards": layout,
        "gone": gone,
    }
    stores.journal.append(catalog.stream(table.name), [New(catalog.REWRITTEN, event)], expected=position)
    settle(stores, table.name)
    return True


def _left(shard: ShardFile, table: Table, reason: str, before: int | None) -> tuple[pa.Table, dict[str, Any]]:
    """The shard's rows that stay, and what changes for the catalogue when some go for their age."""
    rows = shards.read(shard)
    if before is None or shard.time_min >= before:
        return rows, {}
    kept = rows.filter(pa.array(to_columns(rows.select([table.time]))[table.time] >= before))
    return kept, {"content": sha256(canonical([shard.identity, reason, before])), **bounds(kept, table)}


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of files that may differ in the columns that the table has gained since."""
    return pa.concat_tables(tables, promote_options="default")


def bounds(rows: pa.Table, table: Table) -> dict[str, Any]:
    """What the catalogue says of a shard that depends on which rows it has: their number, the bounds of their times, the slices."""
    if not rows.num_rows:
        return {"rows": 0}
    columns = to_columns(rows.select([field.name for field in rows.schema if kind_of(field.type) == "time"]))
    known = {name: values[values != NO_TIME] for name, values in columns.items()}
    spans = {name: [int(values.min()), int(values.max())] for name, values in known.items() if len(values)}
    low, high = spans[table.time]
    tags = {"spans": spans, "window": [low, high], "slices": {name: sliced(rows[name]) for name in table.slices}}
    return {"rows": rows.num_rows, "time_min": low, "time_max": high, "tags": tags}


def unsettled(stores: Stores, table: str) -> tuple[dict[str, Any], ...]:
    """The rewritings that the journal knows and Iceberg does not yet, oldest first."""
    events = [event.data for event in stores.journal.read(catalog.stream(table), types=[catalog.REWRITTEN])]
    there = set(stores.warehouse.files(table)) if events else set()
    pending = []
    for data in events:
        if there & set(data["replaces"]):
            pending.append(data)
            there = there - set(data["replaces"]) | {data["file"]}
    return tuple(pending)


def settle(stores: Stores, table: str) -> int:
    """Carry out in Iceberg what the journal says of rewritten shards. Returns how many rewritings there were to finish."""
    done = 0
    for _ in tries(f"others kept changing table {table!r}"):
        with suppress(Conflict):
            for data in unsettled(stores, table):
                rows = sum(changed["rows"] for changed in data["shards"].values())
                staged = Staged(data["file"], data["file_sha256"], 0, rows) if data["file"] else None
                stores.warehouse.rewrite(table, data["replaces"], staged, attempt=data["rewrite"])
                done += 1
            break
    return done


def merge_plain(stores: Stores, table: str, files: Sequence[str]) -> None:
    """Put the files of a table without shards, such as the prediction log, into one. Raises Conflict when it changes meanwhile."""
    found = []
    for path in files:
        with open_input(path) as source:
            found.append(pq.read_table(source))
    name = sha256(canonical([table, "merge", sorted(files)]))
    staged = stores.warehouse.stage(table, joined(found), name[:32])
    stores.warehouse.rewrite(table, files, staged, attempt=name)


def expiries(
    stores: Stores, table: str, needed: Mapping[int, str], limits: Limits, now: datetime, *, besides: Iterable[str] = ()
) -> tuple[Expiry, ...]:
    """Every snapshot, oldest first, and why it stays: a branch or tag, `needed` by whom, one of the newest, too young, or not entered yet.

    Branches `besides` hold nothing.
    """
    every = stores.warehouse.history(table)
    named: dict[int, str] = {}
    for ref, snapshot in sorted(stores.warehouse.refs(table).items(), key=lambda item: item[0] != "main"):
        if ref not in besides:
            named.setdefault(snapshot, "published" if ref == "main" else f"named {ref}")
    known = {shard.sha256 for shard in catalog.arrived(stores.journal, table)}
    newest = {state.id for state in every[-limits.keep :]} if limits.keep else set()
    found = []
    for state in every:
        attempt = state.notes.get(ATTEMPT)
        why = named.get(state.id) or needed.get(state.id, "")
        if not why and attempt is not None and attempt not in known and table != predictions.TABLE:
            why = "an ingest that was killed has yet to enter it"
        if not why and state.id in newest:
            why = f"one of the newest {limits.keep}"
        if not why and state.at > now - limits.age:
            why = "young"
        found.append(Expiry(state.id, state.at, why))
    return tuple(found)


def strays(stores: Stores, table: str, before: datetime, *, besides: Iterable[int] = ()) -> tuple[Stray, ...]:
    """The table's files, last changed before `before`, that no snapshot, branch, metadata or published shard reaches.

    What only the snapshots `besides` reach counts as unreached. Files that a rewriting replaced since `before` stay: whoever looked the
    shards up earlier may be reading them.
    """
    needed = set(stores.warehouse.reachable(table, besides=besides))
    needed |= {shard.path for shard in catalog.published(stores.journal, table)}
    for event in stores.journal.read(catalog.stream(table), types=[catalog.REWRITTEN]):
        if event.at >= before:
            needed |= set(event.data["replaces"])
    files = Files(stores.settings.place("warehouse"))
    found = []
    for entry in files.list(f"{NAMESPACE}/{table}"):
        if files.address(entry.name) not in needed and entry.changed < before.timestamp():
            found.append(Stray(files.address(entry.name), entry.size, entry.changed, "no snapshot reaches it"))
    return (*found, *torn(Files(files.address(f"{NAMESPACE}/{table}")), before))


def torn(files: Files, before: datetime) -> tuple[Stray, ...]:
    """Files that were being written when their process died, last changed before `before`; an object store has none."""
    if files.local is None or not files.local.is_dir():
        return ()
    found = []
    for path in sorted(files.local.rglob(".*")):
        if path.is_file() and (path.name.startswith(".part-") or path.name.endswith(".part")):
            stat = path.stat()
            if stat.st_mtime < before.timestamp():
                found.append(Stray(str(path), stat.st_size, stat.st_mtime, "half written"))
    return tuple(found)
