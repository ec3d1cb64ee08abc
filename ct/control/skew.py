"""Training-serving skew: features as predictions were made from them, against the same features out of published shards, bit for bit.

What a prediction was asked with is its row; its history is what the shards hold now. A difference is late data where the online store,
as it was when the answer was given, lacked rows that the shards have and held none that they lack; any other difference is skew.
Where the store has been trimmed since, nobody can tell any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.control.place import Place
from ct.data import catalog, predictions
from ct.data.columns import NO_TIME, column_of, to_columns
from ct.data.hashing import row_hash
from ct.data.shards import opened
from ct.data.tables import ShardFile
from ct.errors import CtError
from ct.features import online
from ct.features.declare import own_features
from ct.features.history import TableHistory
from ct.features.online import OnlineStore
from ct.features.online.rows import Source, entities, entries, name_of, sources_of
from ct.features.transform import Spans, lookups_of, span_us, transform
from ct.registry import files, versions
from ct.registry.files import ModelSpec
from ct.roles import Column, Columns, Feature, Lookup
from ct.serving.runtime import features_of

Record = Mapping[str, Any]
Ints = NDArray[np.int64]
SAMPLE, AT_ONCE, WORST, EXPLAINED = 5_000, 1_000, 5, 500
"""Predictions compared at most, and at a time; examples a feature; and predictions whose difference is looked into, a feature."""


@dataclass(frozen=True)
class FeatureSkew:
    """One feature column: of `compared` predictions `equal` ones, `late` ones (late data explains them), `forgotten` ones (they differ, and
    the online store no longer holds what it knew then), and the others. `examples` are (how far apart, prediction id) of those others, the
    farthest first; infinitely far where one side is missing or text."""

    name: str
    compared: int = 0
    equal: int = 0
    late: int = 0
    forgotten: int = 0
    examples: tuple[tuple[float, str], ...] = ()

    @property
    def different(self) -> int:
        """Predictions that differ and late data do not explain it."""
        return self.compared - self.equal - self.late - self.forgotten

    @property
    def share(self) -> float:
        """The share of compared predictions that differ without explanation."""
        return self.different / self.compared if self.compared else 0.0


@dataclass(frozen=True)
class Skew:
    """What a comparison found: of `predictions` some are `pending`, because shards do not reach up to them yet, and `compared` were drawn.

    `published` is the newest event time of each table in shards; `refused` why versions could not be compared.
    """

    predictions: int
    pending: int
    compared: int
    features: tuple[FeatureSkew, ...]
    published: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def skewed(self) -> tuple[str, ...]:
        """The features that differ without explanation, worst first."""
        found = sorted((item for item in self.features if item.different), key=lambda item: -item.share)
        return tuple(item.name for item in found)

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        rows = [
            {
                "feature": item.name,
                "compared": item.compared,
                "equal": item.equal,
                "late": item.late,
                "forgotten": item.forgotten,
                "different": item.different,
                "share": item.share,
                "examples": [{"prediction": name, "gap": gap if math.isfinite(gap) else None} for gap, name in item.examples],
            }
            for item in self.features
        ]
        given = {"predictions": self.predictions, "pending": self.pending, "compared": self.compared}
        return {
            **given,
            "skewed": list(self.skewed),
            "published": dict(self.published),
            "refused": dict(self.refused),
            "features": rows,
        }


def measure(place: Place, *, since: int | None = None, last: int | None = None) -> Skew:
    """Compare predictions that were answered from `since` on (microseconds UTC), the newest `last` of them. Changes nothing.

    Where more than SAMPLE can be compared, those with the smallest hashes of their ids are: the same ones every time.
    """
    tables = _Tables(place)
    records, refused = _answered(place, since, last), dict[str, str]()
    ready: list[tuple[_Version, list[Record]]] = []
    for name in sorted({record["version"] for record in records}):
        try:
            version = _version(place, name)
        except CtError as error:
            refused[name] = error.found
            continue
        mine = [record for record in records if record["version"] == name]
        ready.append((version, [record for record in mine if tables.reach(version, record["event_time"])]))
    drawn = _drawn([record["id"] for _, known in ready for record in known])
    totals: dict[str, FeatureSkew] = {}
    with _store(place) as store:
        for version, known in ready:
            for some in _chunks([record for record in known if record["id"] in drawn]):
                for item in _compared(version, some, tables, store):
                    totals[item.name] = _added(totals.get(item.name), item)
    pending = sum(record["version"] not in refused for record in records) - sum(len(known) for _, known in ready)
    return Skew(len(records), pending, len(drawn), tuple(totals.values()), tables.published(), refused)


@dataclass(frozen=True)
class _Version:
    """A version's own features, out of its own files."""

    spec: ModelSpec
    features: tuple[Feature, ...]
    lookups: tuple[Lookup, ...]


def _version(place: Place, name: str) -> _Version:
    """Raises NotFound or Corrupt."""
    known = versions.get(place.journal, place.pipeline.name, name)
    made = files.fetch(place.artifacts, known.manifest)
    spec = ModelSpec.from_bytes(made[files.SPEC])
    features = features_of(spec, made[files.CODE], lambda: own_features(place.pipeline.features))
    return _Version(spec, features, lookups_of(features))


def _answered(place: Place, since: int | None, last: int | None) -> Sequence[Record]:
    """The predictions that were made from features, oldest first."""
    found = [
        record
        for record in predictions.everything(place.settings)
        if record["kind"] == "prediction" and record["features"] and (since is None or record["t"] >= since)
    ]
    found.sort(key=lambda record: (record["t"], record["id"]))
    return found if last is None else found[-last:]


def _drawn(ids: Sequence[str]) -> frozenset[str]:
    if len(ids) <= SAMPLE:
        return frozenset(ids)
    order = np.argsort(row_hash({"id": np.array(ids, dtype=object)}, ("id",)), kind="stable")
    return frozenset(ids[at] for at in order[:SAMPLE])


def _chunks(records: Sequence[Record]) -> Iterator[list[Record]]:
    """By event time, so that each chunk reads few parts of the shards."""
    ordered = sorted(records, key=lambda record: (record["event_time"], record["id"]))
    for at in range(0, len(ordered), AT_ONCE):
        yield ordered[at : at + AT_ONCE]


@contextmanager
def _store(place: Place) -> Iterator[OnlineStore | None]:
    """The online store, None where there is none: then nothing can be explained."""
    if not online.in_use(place.settings):
        yield None
        return
    store = online.opened(place.settings)
    try:
        yield store
    finally:
        store.close()


class _Tables:
    """The published shards, and what is read of them."""

    def __init__(self, place: Place) -> None:
        self._shards = {table.name: catalog.published(place.journal, table.name) for table in place.pipeline.all_tables}
        self._kinds = {name: catalog.kinds(place.journal, name) for name, found in self._shards.items() if found}
        self._until = {name: max(shard.time_max for shard in found) for name, found in self._shards.items() if found}

    def published(self) -> dict[str, str]:
        """The newest event time of each table."""
        return {name: datetime.fromtimestamp(moment / 1e6, UTC).isoformat() for name, moment in self._until.items()}

    def reach(self, version: _Version, time: int) -> bool:
        """Is all published that a row at `time` may have seen?"""
        return all(self._until.get(lookup.table, NO_TIME) >= time for lookup in version.lookups)

    def history(self, lookups: Sequence[Lookup], rows: Columns, times: Ints) -> _AsOf:
        """What the shards know of these rows' entities within reach."""
        return _AsOf({source.name: self._read(source, rows, times) for source in sources_of(lookups)})

    def _read(self, source: Source, rows: Columns, times: Ints) -> Columns:
        """Only the parts of shards that hold the right times, and of them only the rows of these entities."""
        lookup, low, high = source.lookup, int(times.min()) - source.reach, int(times.max())
        wanted = np.unique(row_hash({name: rows[name] for name in lookup.by}, lookup.by))
        dtypes = {"number": np.float64, "time": np.int64, "text": object}
        kinds = self._kinds[lookup.table]
        parts: list[Columns] = [{name: np.empty(0, dtypes[kinds[name]]) for name in lookup.reads}]
        for shard in self._shards[lookup.table]:
            for some in _pieces(shard, lookup, low, high):
                known = some[lookup.known_at]
                kept = (known >= low) & (known < high) & np.isin(row_hash(some, lookup.by), wanted)
                parts.append({name: values[kept] for name, values in some.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in lookup.reads}


def _pieces(shard: ShardFile, lookup: Lookup, low: int, high: int) -> Iterator[Columns]:
    spans = shard.tags.get("spans")
    if spans is not None and not (
        lookup.known_at in spans and spans[lookup.known_at][1] >= low and spans[lookup.known_at][0] < high
    ):
        return
    with opened(shard) as reader:
        for piece in reader.pieces(lookup.known_at):
            if piece.low is None or piece.high is None or (piece.high >= low and piece.low < high):
                yield to_columns(reader.read(lookup.reads, start=piece.start, stop=piece.stop))


class _AsOf:
    """A History out of the columns read for each source."""

    def __init__(self, columns: Mapping[str, Columns]) -> None:
        self._columns = columns
        self._histories: dict[str, TableHistory] = {}
        self._rows: dict[str, dict[str, set[bytes]]] = {}

    def spans(self, rows: Columns, times: Ints, lookup: Lookup) -> Spans:
        """See `roles.History`."""
        name = name_of(lookup)
        if name not in self._histories:
            self._histories[name] = TableHistory({lookup.table: self._columns[name]})
        return self._histories[name].spans(rows, times, lookup)

    def held(self, row: Columns, lookup: Lookup) -> set[bytes]:
        """All rows of one row's entity, as an online store keeps them."""
        name = name_of(lookup)
        if name not in self._rows:
            self._rows[name] = {}
            for known, found in entries(lookup, self._columns[name]):
                self._rows[name].setdefault(known, set()).add(found)
        (entity,) = entities(row, lookup.by)
        return self._rows[name].get(entity or "", set())


def _compared(version: _Version, records: Sequence[Record], tables: _Tables, store: OnlineStore | None) -> list[FeatureSkew]:
    rows = {
        name: column_of([record["request"].get(name) for record in records], kind)
        for name, kind in version.spec.request.items()
    }
    times = np.array([record["event_time"] for record in records], dtype=np.int64)
    history = tables.history(version.lookups, rows, times)
    found = []
    for feature in version.features:
        made = transform([feature], rows, times, history)
        for column in feature.outputs():
            logged = column_of([record["features"].get(column.name) for record in records], _KINDS[column.kind])
            gaps = _gaps(made[column.name], logged)
            apart = np.flatnonzero(gaps > 0)
            old = {int(at) for at in apart if store is not None and _is_forgotten(feature, int(times[at]), store)}
            asked = [int(at) for at in apart if int(at) not in old] if store is not None and feature.lookups() else []
            late = {
                at
                for at in asked[:EXPLAINED]
                if _is_late(feature, column, _row(rows, at), times[[at]], records[at], history, store)
            }
            worst = sorted((-float(gaps[at]), records[at]["id"]) for at in apart.tolist() if at not in late | old)[:WORST]
            counts = (len(records), len(records) - len(apart), len(late), len(old))
            found.append(FeatureSkew(column.name, *counts, tuple((-gap, name) for gap, name in worst)))
    return found


_KINDS = {"numeric": "number", "category": "text"}


def _row(rows: Columns, at: int) -> Columns:
    return {name: values[[at]] for name, values in rows.items()}


def _gaps(made: NDArray[Any], logged: NDArray[Any]) -> NDArray[np.float64]:
    """How far two columns are apart, [n]: 0 only where every bit is equal, infinity where they cannot be measured. The log has no infinities."""
    if made.dtype == object:
        return np.where(made == logged, 0.0, np.inf)
    made = np.where(np.isfinite(made), made, np.nan)
    equal = (made.view(np.int64) == logged.view(np.int64)) | (np.isnan(made) & np.isnan(logged))
    far = np.abs(made - logged)
    return np.where(equal, 0.0, np.where(np.isnan(far), np.inf, np.maximum(far, np.finfo(np.float64).tiny)))


def _is_forgotten(feature: Feature, time: int, store: OnlineStore) -> bool:
    """Has the store been trimmed of rows that a row at `time` could see?"""
    trimmed = {held.name: held.trimmed for held in store.freshness()}
    return any(trimmed.get(name_of(lookup), 0) > time - span_us(lookup) for lookup in feature.lookups())


def _is_late(
    feature: Feature, column: Column, row: Columns, time: Ints, record: Record, history: _AsOf, store: OnlineStore | None
) -> bool:
    """Was the value right for what the store held when it answered, and did the store hold nothing that shards lack?

    A row that came in while the request was answered may or may not have been seen.
    """
    assert store is not None, "who has no store does not ask"
    lookups, moment = feature.lookups(), record["t"]
    logged = column_of([record["features"].get(column.name)], _KINDS[column.kind])
    for until in {moment, moment - int(record["latency_ms"] * 1000)}:
        past = store.history_at(row, lookups, until)
        (gap,) = _gaps(feature.compute(row, time, past)[column.name], logged)
        if gap == 0 and all(past.held(time, lookup) <= history.held(row, lookup) for lookup in lookups):
            return True
    return False


def _added(one: FeatureSkew | None, other: FeatureSkew) -> FeatureSkew:
    if one is None:
        return other
    worst = sorted([*one.examples, *other.examples], key=lambda item: (-item[0], item[1]))[:WORST]
    return FeatureSkew(
        one.name,
        one.compared + other.compared,
        one.equal + other.equal,
        one.late + other.late,
        one.forgotten + other.forgotten,
        tuple(worst),
    )
