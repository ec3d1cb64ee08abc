"""What a user declares: Table, Label and Pipeline, and the roles its parts play. Building a pipeline runs nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.ids import Json, check_name, describe, fingerprint

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Column name → array [n]. Numbers float64 (NaN missing), times int64 microseconds since 1970 UTC (NaT missing), text object (None missing)."""


@runtime_checkable
class Check(Protocol):
    """A rule over the rows of one shard."""

    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        ...

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        """True where a row breaks the rule, shape [n]. `past` holds the same columns of the newest published shard, None for the first."""
        ...

    def explain(self) -> str:
        """The rule in a few words, for reports."""
        ...

    def limit(self) -> float:
        """The share of rows that may break it, 0 for none."""
        ...


@dataclass(frozen=True)
class Table:
    """A table that grows by shards: its key, event time, owner and checks.

    `key` is one column or several; `time` the event time's column.
    """

    name: str
    key: str | tuple[str, ...]
    time: str
    owner: str = ""
    description: str = ""
    checks: Sequence[Check] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "table")
        key = (self.key,) if isinstance(self.key, str) else tuple(self.key)
        if not key or not all(isinstance(column, str) and column for column in key):
            raise InvalidPipeline(f"table {self.name!r} has key {self.key!r}", "one column name or several", "name the key")
        if not isinstance(self.time, str) or not self.time:
            raise InvalidPipeline(f"table {self.name!r} has time {self.time!r}", "a column name", "name the event time")
        object.__setattr__(self, "checks", tuple(self.checks))
        for check in self.checks:
            if not isinstance(check, Check):
                raise InvalidPipeline(
                    f"{check!r} is not a check of table {self.name!r}",
                    "an object with columns(), violations(rows, past), explain() and limit()",
                    "use ct.NotNull, ct.Within, ct.Unique or your own check",
                )

    @property
    def keys(self) -> tuple[str, ...]:
        """The key's columns."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)


@dataclass(frozen=True)
class Label:
    """What is predicted: `column > above` as 1.0, else 0.0; missing where the column is missing.

    `known_at` names the time from which the truth is known.
    """

    column: str
    above: float
    known_at: str

    def values(self, rows: Columns) -> NDArray[np.float64]:
        """Labels in {0.0, 1.0}, NaN where there is none, shape [n]."""
        raw = np.asarray(rows[self.column], dtype=np.float64)
        return np.where(np.isnan(raw), np.nan, (raw > self.above).astype(np.float64))


@dataclass(frozen=True)
class Column:
    """One output of a feature. `kind` is "numeric" or "category"."""

    name: str
    kind: str


@dataclass(frozen=True)
class Lookup:
    """The history a feature reads: the rows of `table` with the same `by` values that were known before a row's time.

    Only rows whose `known_at` lies in [time - over, time) count. `by` names columns that both the table and the predicted row have.
    Rows that became known at the same moment stand in the order of the columns `key`.
    """

    table: str
    by: tuple[str, ...]
    columns: tuple[str, ...]
    known_at: str
    over: timedelta
    key: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns of the table that it reads."""
        return tuple(dict.fromkeys([*self.by, *self.columns, self.known_at, *self.key]))


class History(Protocol):
    """Rows that were known before, grouped by entity. See features/declare.py for the arrays behind it."""

    def spans(
        self, rows: Columns, times: NDArray[np.int64], lookup: Lookup
    ) -> tuple[Columns, NDArray[np.int64], NDArray[np.int64]]:
        """For each of n rows: its history, as rows [start, stop) of the returned columns, ordered by known-at."""
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


class Gate(Protocol):
    """Decides whether a candidate may be rolled out. See evaluation/gate.py."""


class Plan(Protocol):
    """How a candidate gets traffic. See rollout/plans.py."""


class Trigger(Protocol):
    """Decides when to retrain. See control/triggers.py."""


class Model(Protocol):
    """What is trained. See training/declare.py."""


@dataclass(frozen=True)
class Pipeline:
    """The whole loop of one model as a value. The first table its label's column belongs to is `table`.

    Raises InvalidPipeline naming every fault found in its parts.
    """

    name: str
    table: Table
    label: Label
    features: Sequence[Feature]
    model: Any
    gate: Any
    rollout: Any
    retrain: Sequence[Any] = ()
    segments: Sequence[str] = ()
    tables: Sequence[Table] = ()
    holdout: str = "14d"
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "pipeline")
        for field in ("features", "retrain", "segments", "tables"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        faults = [*self._part_faults()]
        if not faults:
            faults += self._feature_faults()
        if faults:
            raise InvalidPipeline(
                f"pipeline {self.name!r} has {len(faults)} fault(s): " + "; ".join(faults),
                "",
                "mend them in your pipeline file",
            )

    def _part_faults(self) -> list[str]:
        faults = []
        roles = {"table": Table, "label": Label}
        for field, role in roles.items():
            if not isinstance(getattr(self, field), role):
                faults.append(f"{field} is {getattr(self, field)!r}, expected a ct.{role.__name__}")
        for part in self.features:
            if not isinstance(part, Feature):
                faults.append(f"feature {part!r} lacks outputs(), inputs(), lookups() or compute()")
        if not self.features:
            faults.append("there are no features")
        for field, method in (("model", "validate"), ("gate", "validate"), ("rollout", "validate")):
            part = getattr(self, field)
            if not callable(getattr(part, method, None)):
                faults.append(f"{field} is {part!r}, expected a part with {method}()")
            else:
                faults += [f"{field}: {fault}" for fault in part.validate()]
        for trigger in self.retrain:
            if not callable(getattr(trigger, "decide", None)):
                faults.append(f"retrain holds {trigger!r}, expected a trigger such as ct.NewData")
        duration(self.holdout)
        return faults

    def _feature_faults(self) -> list[str]:
        faults, seen = [], set()
        known = {table.name for table in self.all_tables}
        for feature in self.features:
            for column in feature.outputs():
                if column.name in seen:
                    faults.append(f"two features make the column {column.name!r}")
                seen.add(column.name)
            for lookup in feature.lookups():
                if lookup.table not in known:
                    near = get_close_matches(lookup.table, known, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    faults.append(f"a feature reads table {lookup.table!r}, declared are {sorted(known)}{hint}")
            faults += [
                f"a feature reads {self.label.column!r} of {lookup.table!r} as known at {lookup.known_at!r}: "
                f"the truth is known only at {self.label.known_at!r}; pass known_at={self.label.known_at!r}"
                for lookup in feature.lookups()
                if lookup.table == self.table.name
                and self.label.column in lookup.columns
                and lookup.known_at != self.label.known_at
            ]
        late = {self.label.column, self.label.known_at}
        for feature in self.features:
            if leaked := late & set(feature.inputs()):
                faults.append(f"{sorted(leaked)} is known only after the prediction and cannot be a feature of its own row")
        return faults

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The predicted table first, then the others."""
        return (self.table, *(table for table in self.tables if table.name != self.table.name))

    @property
    def request_columns(self) -> tuple[str, ...]:
        """The columns a prediction request carries: key, event time, feature inputs, lookup keys, segments."""
        names = [*self.table.keys, self.table.time]
        for feature in self.features:
            names += feature.inputs()
            names += [column for lookup in feature.lookups() for column in lookup.by]
        return tuple(dict.fromkeys([*names, *self.segments]))

    @property
    def outputs(self) -> tuple[Column, ...]:
        """All feature columns in declared order."""
        return tuple(column for feature in self.features for column in feature.outputs())

    def describe(self) -> Json:
        """The pipeline as plain JSON data."""
        return describe(self)

    def fingerprint(self) -> str:
        """SHA-256 over the description: equal for equal pipelines, in any process."""
        return fingerprint(self)

    def feature_fingerprint(self) -> str:
        """SHA-256 over what decides the feature set alone: tables' keys and times, label, features, segments."""
        return fingerprint(
            {
                "tables": [[table.name, list(table.keys), table.time] for table in self.all_tables],
                "label": self.label,
                "features": self.features,
                "segments": self.segments,
            }
        )

    def replace(self, **changes: Any) -> Pipeline:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def load(spec: str) -> Pipeline:
    """Load `path/to/file.py` or `path/to/file.py:name` (default name `pipeline`) and return its Pipeline.

    The file's folder is put on `sys.path`, as Python does for a script. Raises InvalidPipeline naming file and line of a fault.
    """
    path_text, _, name = spec.partition(":")
    name = name or "pipeline"
    path = Path(path_text).resolve()
    if not path.is_file():
        raise InvalidPipeline(f"there is no file {path_text}", "a Python file with a ct.Pipeline", "check the path")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise InvalidPipeline(f"{path_text} is not a Python file", "a name that ends in .py", "rename it")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    try:
        module_spec.loader.exec_module(module)
    except InvalidPipeline as error:
        raise InvalidPipeline(f"{path_text}{_line(error, path)}: {error.found}", error.expected, error.remedy) from error
    except Exception as error:  # a user's file may raise anything; it is reported, not traced
        raise InvalidPipeline(
            f"{path_text}{_line(error, path)}: {type(error).__name__}: {error}", "a file that Python can run", "mend that line"
        ) from error
    value = getattr(module, name, None)
    if not isinstance(value, Pipeline):
        found = sorted(key for key, item in vars(module).items() if isinstance(item, Pipeline))
        raise InvalidPipeline(
            f"{path_text} has no ct.Pipeline called {name!r}",
            f"one of {found}" if found else "a variable that holds a ct.Pipeline",
            f"name it: {path_text}:NAME" if found else f"write {name} = ct.Pipeline(...)",
        )
    return value


def _line(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f":{lines[-1]}" if lines else ""
