"""Erasing one key everywhere: table, prediction log, online store, features, training sets, quarantine, profiles; and looking whether it worked.

Every step is safe to repeat and asks only what is there now: killed anywhere and run again, it ends in the same state.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ct.control import keeping, runs
from ct.control.act import Actor
from ct.data import arriving, catalog, erasure, maintenance, predictions, profiled, traces
from ct.data.arriving import Reader, Refusal
from ct.data.erasure import Subject
from ct.data.publishing import Stores
from ct.data.tables import ShardFile
from ct.errors import Conflict, CtError
from ct.features import build, online
from ct.features.transform import lookups_of
from ct.ids import canonical, sha256_file
from ct.store.files import Files, delete, get, open_input
from ct.store.journal import New

Step = Callable[[str], None]


@dataclass(frozen=True)
class Erasure:
    """What would go, or what went and whether anything is left.

    `rows` by shard; `predictions` committed ones; `files` old data files; `refs` and `snapshots` by table that reach them; `quarantine`
    and `landing` files; `features` and `sets` counts of files; `versions` that saw the rows; `left` what still holds the key.
    """

    table: str
    applied: bool
    rows: Mapping[str, int]
    predictions: int
    files: tuple[str, ...]
    refs: tuple[str, ...]
    snapshots: tuple[int, ...]
    quarantine: tuple[str, ...]
    landing: tuple[str, ...]
    features: int
    sets: int
    versions: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()
    searched: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The erasure as plain data. It never holds the key."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return plain | {"left": [{"file": file, "where": where} for file, where in self.left]}


def plan(act: Actor, table: str, key: Sequence[str]) -> Erasure:
    """What erasing the key would take. Changes nothing. Raises NotFound or InvalidRequest."""
    here, subject = keeping.stores(act), erasure.subject(act.journal, act.table(table), key)
    found = erasure.find(act.journal, subject)
    touched = {shard.sha256: shard for shard in catalog.published(act.journal, table) if shard.sha256 in found}
    old = [erasure.old(here, name, subject) for name in (table, predictions.TABLE)]
    return Erasure(
        table=table,
        applied=False,
        rows={shard.shard: len(found[digest]) for digest, shard in touched.items()},
        predictions=predictions.named(act.warehouse, subject.text, subject.asked_for),
        files=tuple(sorted({*(shard.path for shard in touched.values()), *(file for item in old for file in item.files)})),
        refs=tuple(ref for item in old for ref in item.refs),
        snapshots=tuple(snapshot for item in old for snapshot in item.snapshots),
        quarantine=_held(here, subject),
        landing=_landed(act, subject, _touched(act, subject) | found.keys()),
        features=len(keeping.features(act)) + len(_features_of(act, touched)),
        sets=len(_sets(act)),
        versions=_versions(act, table, _touched(act, subject) | found.keys()),
    )


def carry_out(act: Actor, table: str, key: Sequence[str], *, landing: bool = False, on_step: Step = lambda _: None) -> Erasure:
    """Erase the key and look whether anything is left of it. Landing files are removed only on request.

    Predictions go first, then the journal is told: from that moment no reader sees the rows. The rest only makes it true on disk.
    """
    here, subject = keeping.stores(act), erasure.subject(act.journal, act.table(table), key)
    on_step("predictions")
    taken = predictions.forget(act.settings, act.warehouse, subject.text, subject.asked_for)
    on_step("rows")
    erasure.request(here, subject)
    asked = erasure.requests(act.journal, subject)
    rows = _counts(act, table, asked)
    erasure.write_out(here, subject.table)
    on_step("snapshots and files")
    old = [erasure.drop(here, name, subject) for name in (table, predictions.TABLE)]
    on_step("online store, features, training sets")
    _forget_online(act, subject)
    features = [stray.address for stray in keeping.features(act)]
    sets = [str(path) for path in _sets(act)]
    held = _held(here, subject)
    landed = _landed(act, subject, _touched(act, subject))
    for address in (*features, *sets, *(landed if landing else ())):
        delete(address)
    for address in held:
        _unquarantine(address, subject)
    _forget_profiles(act, subject)
    _remove_torn(act, subject)
    on_step("looking for what is left")
    searched, left = _left(act, subject, () if landing else landed)
    done = Erasure(
        table=table,
        applied=True,
        rows=rows,
        predictions=taken,
        files=tuple(file for item in old for file in item.files),
        refs=tuple(ref for item in old for ref in item.refs),
        snapshots=tuple(snapshot for item in old for snapshot in item.snapshots),
        quarantine=held,
        landing=landed,
        features=len(features),
        sets=len(sets),
        versions=_versions(act, table, _touched(act, subject)),
        left=left,
        searched=searched,
    )
    _record(act, subject, done)
    return done


def _record(act: Actor, subject: Subject, done: Erasure) -> None:
    salt = erasure.requests(act.journal, subject)
    named = {name: salt[-1].data[name] for name in ("key", "salt", "by")} if salt else erasure.hashed(subject, erasure.salt())
    fact = {
        **named,
        "erasures": [event.data["erasure"] for event in salt],
        "rows": sum(done.rows.values()),
        "predictions": done.predictions,
        "refs": list(done.refs),
        "snapshots": list(done.snapshots),
        "files": len(done.files),
        "quarantine": list(done.quarantine),
        "versions": list(done.versions),
        "reproducible": "in part: the rows that these versions saw are not all there any more"
        if done.versions
        else "as before",
        "searched": dict(done.searched),
    }
    if done.left:
        event = New(catalog.INCOMPLETE, {**fact, "left": [list(item) for item in done.left]})
    else:
        event = New(catalog.VERIFIED, fact)
    act.journal.append(catalog.stream(subject.table.name), [event])


def _touched(act: Actor, subject: Subject) -> set[str]:
    """SHA-256 of the shards that held the key, as far as the journal was told."""
    return {digest for event in erasure.requests(act.journal, subject) for digest in event.data["shards"]}


def _forget_profiles(act: Actor, subject: Subject) -> None:
    """Take the key out of the table's profiles, and remove those that are the profile of no shard any more."""
    name, found = subject.table.name, set()
    if len(subject.parts) == 1:
        profiled.forget(act.journal, act.artifacts, name, subject.table.keys[0], subject.text)
    for event in act.journal.read(catalog.stream(name), types=["ShardPublished", catalog.REWRITTEN, catalog.REPROFILED]):
        shards = [event.data] if event.type == "ShardPublished" else event.data["shards"].values()
        found |= {data["profile"] for data in shards if "profile" in data}
    for digest in found - set(profiled.digests(act.journal, name).values()):
        delete(act.artifacts.address(digest))


def _remove_torn(act: Actor, subject: Subject) -> None:
    """Remove half-written files that hold the key: they are those of a process that died, this erasure's first attempt perhaps."""
    wanted = subject.wanted()
    for uri in _places(act):
        for stray in maintenance.torn(Files(uri), datetime.max.replace(tzinfo=UTC)):
            if traces.look(stray.address, wanted)[0]:
                delete(stray.address)


def _places(act: Actor) -> list[str]:
    """Home and every part of the storage."""
    names = ("warehouse", "artifacts", "features", "quarantine")
    return sorted({str(act.settings.home), *(act.settings.place(name) for name in names)})


def _counts(act: Actor, table: str, asked: Sequence[Any]) -> dict[str, int]:
    names = {shard.sha256: shard.shard for shard in catalog.arrived(act.journal, table)}
    found: dict[str, int] = {}
    for event in asked:
        for digest, changed in event.data["shards"].items():
            found[names[digest]] = found.get(names[digest], 0) + changed["erased"]
    return {name: found[name] for name in names.values() if name in found}


def _versions(act: Actor, table: str, touched: set[str]) -> tuple[str, ...]:
    """The versions whose run froze one of the shards."""
    every = runs.all_runs(act.journal, act.pipeline.name)
    return tuple(run.version for run in every if run.version and touched & set(run.shards.get(table, ())))


def _features_of(act: Actor, touched: Mapping[str, ShardFile]) -> set[str]:
    """The feature files of the touched shards, which will go."""
    line = act.pipeline
    now = {item.name: catalog.published(act.journal, item.name) for item in line.all_tables}
    less = {name: [shard for shard in shards if shard.sha256 not in touched] for name, shards in now.items()}
    gone = build.names_of(line, now) - build.names_of(line, less)
    return {entry.name for uri in keeping.feature_places(act) for entry in Files(uri).list() if entry.name in gone}


def _sets(act: Actor) -> list[Path]:
    work = act.settings.home / "work"
    return sorted(path for path in work.rglob("*") if path.is_file()) if work.is_dir() else []


def _landed(act: Actor, subject: Subject, touched: set[str]) -> tuple[str, ...]:
    """The files that still lie where they arrived: those of the touched shards, and what holds the key of files that were not published whole."""
    name = subject.table.name
    aside = {item["sha256"] for item in catalog.aside(act.journal, name)}
    doubtful = aside | {item["sha256"] for item in catalog.quarantined(act.journal, name)}
    folder = act.settings.root / act.settings.landing / name
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() and touched | doubtful else []
    known = {str(path): "" if path.is_symlink() else sha256_file(path) for path in files}
    return tuple(
        path for path, digest in known.items() if digest in touched or (digest in doubtful and _strange(path, subject))
    )


def _held(here: Stores, subject: Subject) -> tuple[str, ...]:
    """The files in the table's quarantine that hold the key, or that nobody can read and so might."""
    place = here.quarantine
    addresses = [place.address(entry.name) for entry in place.list(subject.table.name)]
    return tuple(address for address in addresses if _holds(address, subject))


def _holds(address: str, subject: Subject) -> bool:
    if address.endswith(_ASIDE) or subject.table.personal:  # written by us
        return bool(traces.look(address, subject.wanted())[0])
    return _strange(address, subject)


def _strange(address: str, subject: Subject) -> bool:
    """Does a stranger's file hold the key? It is decoded by a process that may die of it; then nobody can tell."""
    wanted = subject.wanted()
    if traces.look(address, wanted, decode=False)[0]:
        return True
    if not (address.endswith(".parquet") or wanted.short):
        return False
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"file{Path(address).suffix}"
        copy.write_bytes(get(address))
        try:
            with closing(Reader()) as reader:
                rows = arriving.read(arriving.arrived(copy, subject.table, origin="quarantine", now=0), None, reader)
        except (Refusal, CtError):
            return True
        decoded = Path(folder) / "decoded.parquet"
        pq.write_table(rows, decoded)
        return bool(traces.look(str(decoded), wanted)[0])


_ASIDE = ".rows.parquet"


def _unquarantine(address: str, subject: Subject) -> None:
    """Take the key out of rows that were set aside; a refused file goes as a whole."""
    if not address.endswith(_ASIDE):
        delete(address)
        return
    with open_input(address) as source:
        rows = pq.read_table(source)
    left = erasure.kept(rows, subject)
    if left is None or not left.num_rows:
        delete(address)
    else:
        sink = Path(tempfile.mkdtemp()) / "rows.parquet"
        pq.write_table(left, sink, compression="zstd", write_statistics=False, store_schema=False)
        Files(address.rpartition("/")[0]).put(address.rpartition("/")[2], sink.read_bytes())
        shutil.rmtree(sink.parent)


def _forget_online(act: Actor, subject: Subject) -> None:
    """Take the key's rows out of the online store, and their bytes out of a SQLite file."""
    if not online.in_use(act.settings):
        return
    store = online.opened(act.settings)
    try:
        store.erase(lookups_of(act.pipeline.features), subject.table.name, subject.columns)
    finally:
        store.close()
    if not act.settings.online_url:
        with closing(sqlite3.connect(act.settings.online, timeout=30, isolation_level=None)) as file:
            file.execute("VACUUM")
            if file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise Conflict("somebody reads the online store", "a moment without readers", "erase again")


def _left(act: Actor, subject: Subject, landed: Sequence[str]) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Every byte of home and storage looked at, the journal, the profiles; landing files that were not to be touched count too."""
    settings, wanted = act.settings, subject.wanted()
    found = traces.search([Files(uri) for uri in _places(act)], wanted, closed=settings.place("quarantine"))
    left = [*found.hits, *((address, "the file as it arrived") for address in landed)]
    if not wanted.short:
        for event in act.journal.read():
            if wanted.within(canonical(event.data).encode()):
                left.append((f"journal event {event.seq} ({event.type})", "data"))
    for shard, made in profiled.profiles(act.journal, act.artifacts, subject.table.name):
        if len(subject.parts) == 1 and profiled.without(made, subject.table.keys[0], subject.text) is not made:
            left.append((f"profile of {shard.shard}", "values"))
    searched = {"files": found.files, "bytes": found.size, "raw": not wanted.short}
    return searched, tuple(left)
