"""What a feature set consists of: shards cut into chunks, and one file for each chunk and feature, named by the hash of all it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ct.data.shards import Piece, pieces, places
from ct.data.tables import ShardFile
from ct.features.transform import span_us
from ct.ids import canonical, fingerprint, sha256
from ct.pipeline import Label, Pipeline
from ct.roles import Column, Feature, Lookup

FORMAT = 3
"""Part of every file's name: raise it when the same definitions shall give other values."""
CHUNK_ROWS = 1 << 20
"""Rows that are computed at a time: what a task holds in memory."""

Shards = Mapping[str, Sequence[ShardFile]]


@dataclass(frozen=True)
class Chunk:
    """Places [start, stop) of a shard (see `shards.read`), and the event times between which their rows lie."""

    shard: ShardFile
    start: int
    stop: int
    time_min: int
    time_max: int

    @property
    def rows(self) -> int:
        """The rows that are left."""
        return self.stop - self.start - sum(self.start <= place < self.stop for place in self.shard.without)


@dataclass(frozen=True)
class Recipe:
    """What a part is made by. It leaves the model out, so that a worker need not import the user's code for it."""

    keys: tuple[str, ...]
    time: str
    label: Label
    features: tuple[Feature, ...]
    segments: tuple[str, ...]

    @staticmethod
    def of(pipeline: Pipeline) -> Recipe:
        """The pipeline's."""
        return Recipe(
            pipeline.table.keys, pipeline.table.time, pipeline.label, tuple(pipeline.features), tuple(pipeline.segments)
        )

    @cached_property
    def prints(self) -> tuple[str, ...]:
        """The fingerprint of each feature."""
        return tuple(fingerprint(feature) for feature in self.features)

    @property
    def outputs(self) -> tuple[Column, ...]:
        """All feature columns in declared order."""
        return tuple(column for feature in self.features for column in feature.outputs())


@dataclass(frozen=True)
class Task:
    """The files of one chunk: first that of keys, times, labels and segments, then one for each feature. `missing` are to be made."""

    recipe: Recipe
    chunk: Chunk
    history: Mapping[str, tuple[ShardFile, ...]]
    names: tuple[str, ...]
    missing: frozenset[str]
    folder: str

    @property
    def wanted(self) -> tuple[tuple[Feature, str], ...]:
        """The features to be computed, with the names of their files."""
        pairs = zip(self.recipe.features, self.names[1:], strict=True)
        return tuple((feature, name) for feature, name in pairs if name in self.missing)


def chunks_of(shard: ShardFile, time: str) -> tuple[Chunk, ...]:
    """A shard in pieces of about CHUNK_ROWS rows; its file is opened only when it has more."""
    whole = Chunk(shard, 0, places(shard), shard.time_min, shard.time_max)
    count = -(-places(shard) // CHUNK_ROWS)
    if count <= 1:
        return (whole,)
    found: dict[int, list[Piece]] = {}
    for piece in pieces(shard, time):
        found.setdefault(piece.start * count // whole.stop, []).append(piece)
    return tuple(_chunk(shard, part) for part in found.values())


def _chunk(shard: ShardFile, part: Sequence[Piece]) -> Chunk:
    low = min(shard.time_min if piece.low is None else piece.low for piece in part)
    high = max(shard.time_max if piece.high is None else piece.high for piece in part)
    return Chunk(shard, part[0].start, part[-1].stop, low, high)


def plan(pipeline: Pipeline, shards: Shards, folder: str) -> tuple[Task, ...]:
    """The task of every chunk of the pipeline's table, as if nothing were there yet. Opens no file but those of large shards."""
    recipe = Recipe.of(pipeline)
    reach = {lookup: _Reach.of(shards.get(lookup.table, ()), lookup) for f in recipe.features for lookup in f.lookups()}
    chunks = [chunk for shard in shards[pipeline.table.name] for chunk in chunks_of(shard, recipe.time)]
    return tuple(_task(recipe, chunk, reach, folder) for chunk in chunks)


@dataclass(frozen=True)
class _Reach:
    """The shards of a lookup's table with the span of their known-at: [first, last], or all of time where nobody noted it."""

    shards: tuple[ShardFile, ...]
    first: np.ndarray[tuple[int], np.dtype[np.int64]]
    last: np.ndarray[tuple[int], np.dtype[np.int64]]
    span: int

    @staticmethod
    def of(shards: Sequence[ShardFile], lookup: Lookup) -> _Reach:
        low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        bounds = []
        for shard in shards:
            spans = shard.tags.get("spans")
            bounds.append((low, high) if spans is None else spans.get(lookup.known_at, (high, low)))
        found = np.array(bounds, dtype=np.int64).reshape(-1, 2)
        return _Reach(tuple(shards), found[:, 0], found[:, 1], span_us(lookup))

    def within(self, chunk: Chunk) -> tuple[ShardFile, ...]:
        """The shards whose rows the chunk's can see, by identity."""
        seen = (self.last >= chunk.time_min - self.span) & (self.first < chunk.time_max)
        found = {self.shards[at].identity: self.shards[at] for at in np.flatnonzero(seen).tolist()}
        return tuple(found[identity] for identity in sorted(found))


def _task(recipe: Recipe, chunk: Chunk, reach: Mapping[Lookup, _Reach], folder: str) -> Task:
    what = [FORMAT, list(recipe.keys), recipe.time, chunk.shard.identity, chunk.start, chunk.stop]
    names = [_name([*what, fingerprint(recipe.label), list(recipe.segments)])]
    history: dict[str, dict[str, ShardFile]] = {}
    for feature, printed in zip(recipe.features, recipe.prints, strict=True):
        inputs: dict[str, set[str]] = {}
        for lookup in feature.lookups():
            for shard in reach[lookup].within(chunk):
                inputs.setdefault(lookup.table, set()).add(shard.identity)
                history.setdefault(lookup.table, {})[shard.identity] = shard
        names.append(_name([*what, printed, {table: sorted(found) for table, found in sorted(inputs.items())}]))
    files = {table: tuple(found[name] for name in sorted(found)) for table, found in sorted(history.items())}
    return Task(recipe, chunk, files, tuple(names), frozenset(), folder)


def _name(parts: object) -> str:
    return f"{sha256(canonical(parts))}.arrow"
