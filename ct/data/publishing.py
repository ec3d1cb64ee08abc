"""What becomes of a judged file: its rows published with their facts, rows set aside, or all of it in quarantine. Safe to repeat at any point.

The facts of a shard are stored before it is published and named in its snapshot. So what the Iceberg table holds and the journal does not
know yet, because an ingest was killed between the two, is entered by the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ct.data import catalog, profiled
from ct.data.arriving import SUFFIXES, Arrived, Reader, Refusal
from ct.data.checks import Findings
from ct.data.columns import Rows, codes, kind_of
from ct.data.contract import Conformed
from ct.data.profile import Profiles
from ct.data.tables import Attempt, Staged, Warehouse
from ct.errors import Conflict, InvalidPipeline
from ct.ids import canonical, sha256
from ct.pipeline import Table
from ct.roles import Columns
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.files import Files, open_input
from ct.store.journal import Journal, New

FACTS = "ct.facts"
_SLICES = 200
_OWN = ("source", "origin", "owner", "window", "freshness", "slices", "spans")


@dataclass(frozen=True)
class Stores:
    """Where a project keeps what, and who reads what arrives."""

    settings: Settings
    journal: Journal
    warehouse: Warehouse
    artifacts: Artifacts
    reader: Reader

    @property
    def quarantine(self) -> Files:
        """The files that were refused, and the rows that were set aside."""
        return Files(self.settings.place("quarantine"))


class Work:
    """A shard's rows being staged and profiled, while they may still be checked: the staged file gets its name only once they are agreed."""

    def __init__(self, file: Arrived, rows: pa.Table, stores: Stores, threads: Executor) -> None:
        table, self._verdict = file.table, Future[None]()
        self.rows = ordered(rows, table)
        like = profiled.reference(stores.journal, stores.artifacts, table.name)
        self._profile = threads.submit(_profile, self.rows, table, like)
        self._staged = threads.submit(
            stores.warehouse.stage,
            table.name,
            self.rows,
            file.digest,
            order=(table.time, *table.keys),
            agreed=self._verdict.result,
        )

    def give_up(self) -> None:
        """The file is not to be, unless it was agreed to."""
        if not self._verdict.done():
            self._verdict.set_exception(Abandoned())

    def agree(self) -> tuple[Staged, Profiles, str]:
        """The staged file, the profile, and the digest of what it was counted like."""
        self._verdict.set_result(None)
        return self._staged.result(), *self._profile.result()


class Abandoned(Exception):
    """A file that was being staged is not wanted."""


def publish(
    file: Arrived, work: Work, judged: Conformed, found: Findings, aside: pa.Table, stores: Stores, position: int
) -> int:
    """Stage, publish, enter in the journal; the snapshot's id. Raises Conflict when the table has moved on since `position`."""
    warehouse, name = stores.warehouse, file.table.name
    base = warehouse.snapshot(name)
    entered = enter(file.table, stores, position)
    if entered and file.digest not in entered:
        raise Conflict("shards of an ingest that was killed", "all published shards in the journal", "check against them")
    if not entered:
        # Read after `base`: whoever published before it is in the journal by now, or was entered just above.
        if stores.journal.version(file.stream) != position:
            raise Conflict("another ingest's shard", "the shards that this one was checked against", "check against them")
        if base is None:
            base = warehouse.create(name, judged.schema)
        elif judged.schema.names != _names(stores.journal, name):
            warehouse.add_columns(name, judged.schema)
        data = _facts(file, replace(judged, rows=work.rows), found)
        if aside.num_rows:
            data["aside"] = {**data["aside"], "file": _put(stores.quarantine, f"{name}/{file.digest}.rows.parquet", aside)}
        staged, profile, data["like"] = work.agree()
        data["profile"] = stores.artifacts.put(profile.to_bytes())
        notes = {FACTS: stores.artifacts.put(canonical(data).encode())}
        warehouse.publish(name, staged, attempt=file.digest, base=base, notes=notes)
        entered = enter(file.table, stores, position)
    return entered[file.digest]


def _names(journal: Journal, name: str) -> list[str]:
    schema = catalog.contract(journal, name)
    return [] if schema is None else list(schema.names)


def enter(table: Table, stores: Stores, position: int) -> dict[str, int]:
    """Journal every shard that the Iceberg table holds and the journal, at `position`, does not. Returns their snapshots by digest."""
    journal, artifacts, name = stores.journal, stores.artifacts, table.name
    known = {shard.sha256 for shard in catalog.arrived(journal, name)}
    fresh = [attempt for attempt in stores.warehouse.attempts(name) if attempt.attempt not in known]
    if not fresh:
        return {}
    like = profiled.reference(journal, artifacts, name)
    columns = _names(journal, name)
    events = []
    for attempt in fresh:
        data = json.loads(artifacts.get(attempt.notes[FACTS]))
        if data.pop("like") != _digest(like):  # somebody else's shard came in between
            with open_input(attempt.file) as source:
                data["profile"] = artifacts.put(_profile(pq.read_table(source), table, like)[0].to_bytes())
        made = Profiles.from_bytes(artifacts.get(data["profile"]))
        like = made if like is None else like.extended(made)
        schema = data.pop("schema")
        if not columns:
            events.append(New("TableCreated", {"schema": schema, "owner": table.owner}))
        elif added := [column for column, _ in schema if column not in columns]:
            events.append(New("ContractChanged", {"schema": schema, "added": added, "shard": data["shard"]}))
        columns = [column for column, _ in schema]
        events.append(New("ShardPublished", {**data, **_publication(name, attempt)}))
    journal.append(catalog.stream(name), events, expected=position)
    return {attempt.attempt: attempt.snapshot for attempt in fresh}


def _publication(table: str, attempt: Attempt) -> dict[str, Any]:
    return {
        "sha256": attempt.attempt,
        "snapshot": attempt.snapshot,
        "file": attempt.file,
        "file_sha256": attempt.file_sha256,
        "makes": f"shard/{table}/{attempt.attempt}",
        "from": [],
    }


def _digest(like: Profiles | None) -> str:
    return "" if like is None else sha256(like.to_bytes())


def _profile(rows: pa.Table, table: Table, like: Profiles | None) -> tuple[Profiles, str]:
    """The rows' profile, counted as the earlier shards' are, so that they merge; and the digest of what it was counted like."""
    return Profiles.of(rows, table.slices, like), _digest(like)


def _facts(file: Arrived, judged: Conformed, found: Findings) -> dict[str, Any]:
    """What the journal says of a shard, but for where it lies and its profile."""
    rows, table = judged.rows, file.table
    spans = _spans(rows)
    first, last = spans[table.time]
    own = _own_tags(table, Rows(rows))
    tags = {
        **own,
        "source": file.format,
        "origin": file.origin,
        "owner": table.owner,
        "window": [first, last],
        "freshness": file.now - last,
        "slices": {name: sliced(rows[name]) for name in table.slices},
        "spans": spans,
    }
    drift = [[item.kind, item.column, item.action, item.found] for item in judged.differences]
    warnings = [asdict(reason) for reason in (*judged.warnings, *found.warnings)]
    aside = {"rows": int(np.count_nonzero(found.rows_aside)), "reasons": [asdict(reason) for reason in found.aside]}
    return {
        "shard": file.shard,
        "rows": rows.num_rows,
        "time_min": first,
        "time_max": last,
        "schema": [[field.name, str(field.type)] for field in judged.schema],
        "missing": {name: lacking for name in rows.column_names if (lacking := _lacking(rows[name]))},
        "tags": tags,
        "drift": drift,
        "warnings": warnings,
        "aside": aside,
    }


def _lacking(column: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)


def _spans(rows: pa.Table) -> dict[str, list[int]]:
    """First and last moment of every time column, so that a reader can tell which shards it needs."""
    found = {}
    for field in rows.schema:
        if kind_of(field.type) == "time":
            stamps = rows[field.name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            ends = pc.min_max(stamps).as_py()
            if ends["min"] is not None:
                found[field.name] = [ends["min"], ends["max"]]
    return found


def sliced(column: pa.ChunkedArray) -> dict[str, int]:
    """Rows by value, of the most frequent values."""
    index, values = codes(column)
    often = np.bincount(index[index >= 0], minlength=len(values))
    frequent = sorted(range(len(values)), key=lambda at: (-often[at], values[at]))[:_SLICES]
    return {values[at]: int(often[at]) for at in frequent if often[at]}


def _own_tags(table: Table, rows: Columns) -> Mapping[str, Any]:
    """What the table's function of tags says. Raises InvalidPipeline when it fails or says anything that is no tag."""
    if table.tags is None:
        return {}
    remedy = f"mend the function in tags= of table {table.name!r}"
    try:
        found = dict(table.tags(rows))
    except Exception as error:  # a user's function may raise anything
        raise InvalidPipeline(f"tags fail: {type(error).__name__}: {error}", "a mapping of names to values", remedy) from error
    for name, value in found.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(name, str) or name in _OWN:
            raise InvalidPipeline(f"tag {name!r}", f"a name that is none of {list(_OWN)}", remedy)
        if not isinstance(plain, (str, bool, int, float)) or plain != plain or plain in (float("inf"), float("-inf")):
            raise InvalidPipeline(f"tag {name!r} is {value!r}", "a text, a finite number or a truth value", remedy)
        found[name] = plain
    return found


def ordered(rows: pa.Table, table: Table) -> pa.Table:
    """The rows by event time, then by the key's text, so that readers can leave out what they do not need."""
    texts = [rows[name].cast(pa.string()) for name in table.keys]
    at = Rows(rows)[table.time]
    if _in_order(at, texts):
        return rows
    frame = pa.table([pa.array(at), *texts], names=[str(place) for place in range(1 + len(texts))])
    order = pc.sort_indices(frame.combine_chunks(), sort_keys=[(name, "ascending") for name in frame.column_names])
    return rows.combine_chunks().take(order)


def _in_order(at: NDArray[np.int64], texts: list[pa.ChunkedArray]) -> bool:
    if not bool((at[1:] >= at[:-1]).all()):
        return False
    tied = np.flatnonzero(at[1:] == at[:-1])  # rows that the one behind them ties with
    for text in texts:
        here, after = text.take(pa.array(tied)), text.take(pa.array(tied + 1))
        if len(tied) and not pc.all(pc.less_equal(here, after)).as_py():
            return False
        tied = tied[np.asarray(pc.equal(here, after).to_numpy(), dtype=np.bool_)]
    return True


def quarantine(file: Arrived, refused: Refusal, stores: Stores, position: int) -> None:
    """Keep a copy and journal the reasons. A link is not followed. Of a table with personal columns the veiled rows are kept, if any."""
    rows = refused.rows.num_rows if refused.rows is not None else 0
    data = {
        "shard": file.shard,
        "sha256": file.digest,
        "rows": rows,
        "file": _kept(file, refused, stores.quarantine),
        "rules": file.rules,
        "reasons": [asdict(reason) for reason in refused.reasons],
    }
    stores.journal.append(file.stream, [New("ShardQuarantined", data)], expected=position)


def _kept(file: Arrived, refused: Refusal, place: Files) -> str:
    name = f"{file.table.name}/{file.digest}"
    if file.path.is_symlink():
        return ""
    if file.table.personal:
        return _put(place, f"{name}.parquet", refused.rows) if refused.rows is not None else ""
    return place.put(f"{name}{file.path.suffix if file.path.suffix in SUFFIXES else ''}", file.path.read_bytes())


def _put(place: Files, name: str, rows: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_statistics=False, store_schema=False)
    return place.put(name, bytes(sink.getvalue()))
