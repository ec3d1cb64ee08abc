"""The roles that a pipeline's parts play, each of one to four methods, and the values that pass between them. A user's object may play any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ct.objectives import BINARY, Objective

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Column name → array [n]. Numbers float64 (NaN missing), times int64 microseconds since 1970 UTC (NaT missing), text object (None missing)."""


class Past(Protocol):
    """What a check may know beyond the arriving rows: the moment of arrival, and what was published before."""

    @property
    def now(self) -> int:
        """When the shard arrived, in microseconds UTC."""
        ...

    def sizes(self) -> tuple[int, ...]:
        """Rows of each published shard, oldest first."""
        ...

    def newest(self, *columns: str) -> Columns | None:
        """Columns of the newest published shard, None before the first one."""
        ...

    def each(self, *columns: str, shards: int | None = None) -> Iterator[Columns]:
        """Columns of the published shards (of the newest `shards` of them), newest first, in parts that fit into memory."""
        ...

    def quantiles(self, column: str, *shares: float) -> tuple[float, ...] | None:
        """Quantiles of a column of numbers over all published shards, out of their profiles; None where nothing is known."""
        ...

    def values(self, column: str) -> frozenset[str] | None:
        """The texts of a column that published shards held, out of their profiles; None where nothing is known."""
        ...


@runtime_checkable
class Check(Protocol):
    """A rule over the rows of one shard."""

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        ...

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True where a row breaks the rule, shape [n]; or one truth value, shape [], where the shard as a whole does."""
        ...

    def explain(self) -> str:
        """The rule in a few words, for reports."""
        ...

    def limit(self) -> float:
        """The share of rows that may break it, 0 for none."""
        ...


@dataclass(frozen=True)
class Arrival:
    """Something new at a source: one shard to be. `name` is a safe file name, `position` the cursor once it is taken.

    `key` names it among the things of a source without an order (a file, an object). Where positions follow each other it is empty,
    and `after` is the position before, "" at the beginning. `size` is in bytes, None where it is not known before. `refused` says why
    it is not fetched at all.
    """

    name: str
    position: str
    size: int | None = None
    key: str = ""
    after: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Cursor:
    """How far a table's source has been read, as the journal says. Paths of a source are relative to `root`.

    `position` is the newest of an ordered source that was taken, `started` the one that its reading began with, "" for none.
    `taken` holds the position of each key of a source without an order; `seen` the SHA-256 of every file that ingest has judged.
    `digest` gives the SHA-256 of a file here; a loop passes one that remembers.
    """

    root: Path
    digest: Callable[[Path], str]
    position: str = ""
    started: str = ""
    taken: Mapping[str, str] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()


@runtime_checkable
class Source(Protocol):
    """Where a table's shards come from."""

    def explain(self) -> str:
        """What and where it is, without secrets, for reports."""
        ...

    def pending(self, cursor: Cursor) -> tuple[Arrival, ...]:
        """What is there and was not taken, oldest first; it reads no content. Raises a CtError when the source cannot be read on."""
        ...

    def fetch(self, arrival: Arrival, cursor: Cursor, folder: Path) -> Path:
        """The arrival as one whole file: in `folder`, or where it lies. The same arrival gives the same bytes. Raises a CtError."""
        ...

    def locate(self, text: str, cursor: Cursor) -> str:
        """The position that a person calls `text`, such as a snapshot's id. Raises InvalidRequest where there is none."""
        ...


@runtime_checkable
class Personal(Protocol):
    """What becomes of a personal column before anything else sees it."""

    @property
    def column(self) -> str:
        """The column's name."""
        ...

    def veil(self, values: Sequence[Any], key: bytes) -> Sequence[str | None] | None:
        """What is stored instead of the values [n]; None to store nothing. `key` is the project's secret."""
        ...


@dataclass(frozen=True)
class Column:
    """One output of a feature. `kind` is "numeric" or "category".

    How the model sees it is fitted on the training rows: a number standardized if `scaled`, or in one of `bins` quantile bins; a category
    by a vocabulary in which values seen fewer than `rare` times share a bucket, or in one of `hashed` buckets.

    The numbers of a sequence of past events share its name `sequence`; those of one `step` (1 for the newest) belong together. The
    last of a step is missing where there was no such event, and only there.
    """

    name: str
    kind: str
    scaled: bool = True
    bins: int = 0
    rare: int = 5
    hashed: int = 0
    sequence: str = ""
    step: int = 0


@dataclass(frozen=True)
class Lookup:
    """The history a feature reads: the rows of `table` with the same `by` values that were known before a row's time.

    Only rows whose `known_at` lies in [time - over, time) count. `by` names columns that both the table and the predicted row have.
    Rows that became known at the same moment stand in the order of `hashing.row_hash` of
    their columns `key`. `where` leaves out rows of the table: each (column, "==" "!=" "<" "<=" ">" or ">=", text or number) must hold.
    """

    table: str
    by: tuple[str, ...]
    columns: tuple[str, ...]
    known_at: str
    over: timedelta
    key: tuple[str, ...]
    where: tuple[tuple[str, str, str | float], ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns of the table that it reads."""
        return tuple(dict.fromkeys([*self.by, *self.columns, self.known_at, *self.key, *(part[0] for part in self.where)]))


class History(Protocol):
    """Rows that were known before, grouped by entity. See features/declare.py for the arrays behind it."""

    def spans(
        self, rows: Columns, times: NDArray[np.int64], lookup: Lookup
    ) -> tuple[Columns, NDArray[np.int64], NDArray[np.int64]]:
        """For each of n rows: its history, as rows [start, stop) of the returned columns, ordered by known-at.

        The columns are those of the lookup, as numbers, and its `known_at`, as times.
        """
        ...


@runtime_checkable
class Feature(Protocol):
    """Something computed for a row from its own columns and from earlier rows."""

    def outputs(self) -> tuple[Column, ...]:
        """The columns it makes."""
        ...

    def inputs(self) -> tuple[str, ...]:
        """The row's own columns it reads (those a request must carry)."""
        ...

    def lookups(self) -> tuple[Lookup, ...]:
        """The histories it reads."""
        ...

    def compute(self, rows: Columns, times: NDArray[np.int64], history: History) -> dict[str, NDArray[Any]]:
        """One array [n] for each output: float64 with NaN, or object with None."""
        ...


@dataclass(frozen=True)
class Offered:
    """Rows that may train, n of them in any order.

    `times` are event times (int64 microseconds UTC), `keys` hashes of the rows' keys (int64), `segments` texts by segment (object, None
    missing), `shards` each row's place in `tags`, which are the tags of the shards that the rows arrived in.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    segments: Columns
    shards: NDArray[np.int64]
    tags: Sequence[Mapping[str, Any]]


@runtime_checkable
class Selector(Protocol):
    """Chooses training rows. It never touches the rows that judge."""

    def segments(self) -> tuple[str, ...]:
        """The pipeline's segments it reads."""
        ...

    def chosen(self, rows: Offered) -> NDArray[np.bool_]:
        """True where a row trains, shape [n]; the same rows in whatever order they are offered."""
        ...

    def explain(self) -> str:
        """The choice in a few words, for reports."""
        ...


@dataclass(frozen=True)
class Weighed:
    """Rows that train, n of them in any order, for whoever weighs them.

    `times`, `keys` and `segments` as in Offered; `features` the feature columns; `label` float64 [n]; `scores` the champion's scores
    of these rows ([n], or [n, k]), None where there is no champion; `drift` how far a value of a segment has moved since the champion
    was trained: {segment: {value: effect}}, effects in [0, 1], empty where nothing was compared. `objective` says what labels and
    scores are.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    segments: Columns
    features: Columns
    label: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    drift: Mapping[str, Mapping[str, float]]
    objective: Objective = BINARY


@runtime_checkable
class Weigher(Protocol):
    """Says how much each training row counts."""

    def segments(self) -> tuple[str, ...]:
        """The pipeline's segments it reads."""
        ...

    def weights(self, rows: Weighed) -> NDArray[np.float64]:
        """Weights of at least 0, shape [n]; 1.0 changes nothing. The same rows get the same weights in whatever order they come."""
        ...

    def explain(self) -> str:
        """The rule in a few words, for reports."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A measure of the user's own, such as what wrong answers cost. A plain function of the same arguments is one too."""

    def value(self, scores: NDArray[np.float64], labels: NDArray[np.float64], columns: Columns) -> float:
        """The measure of n rows: scores [n] or [n, k] and labels [n] as in ct/objectives.py, `columns` their features and segments."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Rows as a model sees them: numeric float32 [n, f], category int64 [n, c]; label and weight float64 [n]."""

    numeric: NDArray[np.float32]
    category: NDArray[np.int64]
    label: NDArray[np.float64]
    weight: NDArray[np.float64]


@runtime_checkable
class Challenger(Protocol):
    """Another kind of model, fitted beside a candidate so that one sees what it is worth. It is never promoted."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    def missing(self) -> str:
        """Why it cannot run here, empty when it can."""
        ...

    def scores(self, objective: Objective, train: Encoded, asked: Encoded) -> NDArray[np.float64]:
        """Its scores of `asked` after fitting on `train`, [n] or [n, k] as in ct/objectives.py. The labels of `asked` are not for it."""
        ...


class Gate(Protocol):
    """Decides whether a candidate may be rolled out. See evaluation/gate.py."""


class Plan(Protocol):
    """How a candidate gets traffic. See rollout/plans.py."""


class Trigger(Protocol):
    """Decides when to retrain. See control/triggers.py."""


class Model(Protocol):
    """What is trained: `members` (one ct.Torch or several), `seed`, `held`, `patience`, `calibrate`, `balanced` and `start`; validate(),
    searches() and resolved(params). See training/declare.py and training/ensemble.py."""
