"""The prediction log: the segments that replicas append to (inbox.py), read, and moved into a table exactly once by the committer.

What is logged is the endpoint's concern.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ct.data.inbox import FRAME, frame
from ct.data.inbox import Inbox as Inbox
from ct.data.naming import PredictionIds as PredictionIds
from ct.data.tables import Warehouse
from ct.ids import canonical, sha256
from ct.settings import Settings
from ct.store.files import open_input, sync_folder

TABLE = "predictions"
Record = dict[str, Any]
Cursor = dict[str, int]
"""How many bytes of each segment have been read."""

_MAX_RECORD = 1 << 26
_MARK, _PLAN, _LOCK = "committed.json", "plan.json", "commit.lock"
_JSON = ("context", "request", "features", "scores")
_PREDICTION = {
    "kind": pa.string(),
    "id": pa.string(),
    "t": pa.int64(),
    "event_time": pa.int64(),
    "endpoint": pa.string(),
    "version": pa.string(),
    "arm": pa.string(),
    "assigned": pa.string(),
    "forced": pa.bool_(),
    "epoch": pa.int64(),
    "weight": pa.int64(),
    "score": pa.float64(),
    "latency_ms": pa.float64(),
    "error": pa.string(),
    "unit": pa.string(),
    "key": pa.string(),
    "of": pa.string(),
    **{name: pa.string() for name in _JSON},
}
_LABEL = {"value": pa.float64(), "label": pa.float64(), "known_at": pa.int64()}
_SCHEMA = pa.schema({**_PREDICTION, **_LABEL})
_LABEL_KEYS = ("kind", "id", "t", *_LABEL)


def read(folder: Path, cursor: Mapping[str, int] | None = None) -> tuple[list[Record], Cursor]:
    """The records after `cursor`, and the cursor after them. None begins where the committer stopped.

    A segment's unfinished or damaged end is not read; it is looked at again the next time.
    """
    reached: Cursor = dict(_mark(folder) if cursor is None else cursor)
    records: list[Record] = []
    for path in sorted(folder.glob("*.log")):
        begin = reached.get(path.name, 0)
        bodies, end = _bodies(path, begin)
        if end > begin:
            found = map(orjson.loads, bodies)
            records += [record for record in found if record["kind"] != "erased"]
            reached[path.name] = end
    return records, reached


def _bodies(path: Path, begin: int, stop: int | None = None) -> tuple[list[bytes], int]:
    """The whole records in bytes [begin, stop) of a segment, and where they end."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= begin:
                return [], begin
            file.seek(begin)
            data = file.read() if stop is None else file.read(stop - begin)
    except FileNotFoundError:  # committed and deleted meanwhile
        return [], begin
    bodies, at = [], 0
    while at + FRAME.size <= len(data):
        length, check = FRAME.unpack_from(data, at)
        body = data[at + FRAME.size : at + FRAME.size + length]
        if not 0 < length <= _MAX_RECORD or len(body) < length or zlib.crc32(body) != check:
            break
        bodies.append(body)
        at += FRAME.size + length
    return bodies, begin + at


def commit(settings: Settings, warehouse: Warehouse) -> int:
    """Move what the inbox holds into the table, each record exactly once, and delete segments that are done. Returns the records moved.

    What is moved is written down first, so that a commit that was killed is finished by the next one under the same attempt.
    """
    folder = settings.inbox
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder, fcntl.LOCK_EX):
        moved = _carry_out(folder, warehouse, _load(folder / _PLAN)) if (folder / _PLAN).exists() else 0
        sealed = [path for path in sorted(folder.glob("*.log")) if _sealed(path)]
        begin = _mark(folder)
        records, end = read(folder, begin)
        if records:
            plan = {"from": begin, "to": end, "attempt": sha256(canonical([begin, end]))}
            _save(folder / _PLAN, plan)
            moved += _carry_out(folder, warehouse, plan)
        _clear(folder, sealed)
    return moved


def _carry_out(folder: Path, warehouse: Warehouse, plan: Mapping[str, Any]) -> int:
    bodies: list[bytes] = []
    for name, stop in sorted(plan["to"].items()):
        bodies += _bodies(folder / name, plan["from"].get(name, 0), stop)[0]
    if bodies:
        if warehouse.exists(TABLE):  # a log of an older ct lacks columns, which read as missing there
            warehouse.add_columns(TABLE, _SCHEMA)
        warehouse.append(TABLE, _table([orjson.loads(body) for body in bodies]), attempt=plan["attempt"])
    _save(folder / _MARK, plan["to"])
    (folder / _PLAN).unlink()
    sync_folder(folder)
    return len(bodies)


def _sealed(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _clear(folder: Path, sealed: Iterable[Path]) -> None:
    mark = _mark(folder)
    for path in sealed:
        if path.stat().st_size == mark.get(path.name, 0):
            path.unlink()
        else:  # nobody was told that its damaged end was logged; it is kept for a person to look at
            path.rename(path.with_suffix(".torn"))
    _save(folder / _MARK, {name: end for name, end in mark.items() if (folder / name).exists()})


def forget(settings: Settings, warehouse: Warehouse, text: str, gone: Callable[[Record], bool]) -> int:
    """Take the predictions for which `gone` says so, and the labels given to them, out of table and inbox. Returns the records taken out.

    `text` stands in the key, unit or request of each of them. The inbox is committed first; in segments that a replica still writes, the
    records are overwritten in place. Snapshots before that still reach the rows: the caller drops them, and the files only they reach.
    """
    commit(settings, warehouse)
    with _lock(settings.inbox, fcntl.LOCK_EX):
        files = warehouse.files(TABLE) if warehouse.exists(TABLE) else ()
        ids = frozenset().union(*(_named(path, text, gone) for path in files))
        taken = _without(warehouse, files, ids) if ids else 0
        for path in sorted(settings.inbox.glob("*.log")):
            _blank(path, _mark(settings.inbox).get(path.name, 0), lambda record: record.get("id") in ids or gone(record))
    return taken


def named(warehouse: Warehouse, text: str, gone: Callable[[Record], bool]) -> int:
    """How many committed predictions `forget` would take out."""
    return sum(len(_named(path, text, gone)) for path in warehouse.files(TABLE)) if warehouse.exists(TABLE) else 0


def _named(path: str, text: str, gone: Callable[[Record], bool]) -> frozenset[str]:
    """The ids of a file's predictions that shall go."""
    with open_input(path) as source:
        rows = pq.read_table(source, columns=["kind", "id", "key", "unit", "request"])
    spelled = [text, orjson.dumps(text).decode()[1:-1]]
    holds = [pc.match_substring(rows[name].fill_null(""), part) for name in ("key", "unit", "request") for part in spelled]
    found = rows.filter(reduce(pc.or_, holds)).to_pylist()
    return frozenset(
        row["id"] for row in found if row["kind"] != "label" and gone({**row, "request": orjson.loads(row["request"] or b"{}")})
    )


def _without(warehouse: Warehouse, files: Sequence[str], ids: frozenset[str]) -> int:
    """Replace the files that hold records of `ids` by one without them, in one commit. Returns the records' number."""
    values, kept, taken = pa.array(sorted(ids), pa.string()), dict[str, pa.Table](), 0
    for path in files:
        with open_input(path) as source:
            rows = pq.read_table(source)
        left = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=values)))
        if left.num_rows < rows.num_rows:
            kept[path], taken = left, taken + rows.num_rows - left.num_rows
    rest = pa.concat_tables(kept.values(), promote_options="default")  # files of an older ct have fewer columns
    attempt = sha256(canonical([sorted(kept), sorted(ids)]))
    staged = warehouse.stage(TABLE, rest, attempt[:32]) if rest.num_rows else None
    warehouse.rewrite(TABLE, list(kept), staged, attempt=attempt)
    return taken


def _blank(path: Path, end: int, gone: Callable[[Record], bool]) -> None:
    """Overwrite committed records, those before `end`, by as many bytes that say nothing."""
    at = 0
    with path.open("r+b") as file:
        for body in _bodies(path, 0, end)[0]:
            if gone(orjson.loads(body)):
                file.seek(at)
                file.write(frame({"kind": "erased"}, len(body)))
            at += FRAME.size + len(body)
        file.flush()
        os.fsync(file.fileno())


def committed(settings: Settings, *, first_epoch: int = 0) -> list[Record]:
    """The table's records: labels, and predictions from `first_epoch` on."""
    warehouse = Warehouse(settings)
    if not warehouse.exists(TABLE):
        return []
    records = []
    for row in warehouse.scan(TABLE).to_pylist():
        if row["kind"] == "label":
            records.append({name: row[name] for name in _LABEL_KEYS})
        elif row["epoch"] >= first_epoch:
            texts = {name: orjson.loads(row.get(name) or b"{}") for name in _JSON}
            records.append({name: row.get(name) for name in _PREDICTION} | texts)
    return records


def everything(settings: Settings) -> list[Record]:
    """Every record once, whether it lies in the table or still in the inbox."""
    if not settings.inbox.is_dir():
        return committed(settings)
    with _lock(settings.inbox, fcntl.LOCK_SH):
        done = committed(settings)
        begin = _mark(settings.inbox)
        plan = _load(settings.inbox / _PLAN)
        if plan and Warehouse(settings).exists(TABLE) and Warehouse(settings).published(TABLE, plan["attempt"]) is not None:
            begin = plan["to"]
        return done + read(settings.inbox, begin)[0]


def _table(records: Sequence[Record]) -> pa.Table:
    columns = {}
    for name, type_ in zip(_SCHEMA.names, _SCHEMA.types, strict=True):
        values: list[Any] = [record.get(name) for record in records]
        if name in _JSON:
            values = [orjson.dumps(value or {}).decode() for value in values]
        columns[name] = pa.array(values, type_)
    return pa.table(columns, schema=_SCHEMA)


def _mark(folder: Path) -> Cursor:
    return {str(name): int(end) for name, end in _load(folder / _MARK).items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}


def _save(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(canonical(value).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


@contextmanager
def _lock(folder: Path, mode: int) -> Iterator[None]:
    with (folder / _LOCK).open("a") as file:
        fcntl.flock(file, mode)
        yield
