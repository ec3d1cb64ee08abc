"""What a user declares: Table, Label and Pipeline. Building a pipeline runs nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.ids import Json, check_name, describe, fingerprint
from ct.label import Label as Label
from ct.roles import Check, Column, Columns, Feature, Personal, Selector, Source, Weigher


@dataclass(frozen=True)
class SchemaPolicy:
    """What to do when a shard's columns differ from the contract, by kind of difference.

    `added`: "reject", "ignore" (leave the column out) or "accept" (the table gains it). `missing`: "reject" or "null".
    `widened` (the contract is wider, such as whole numbers for a float column): "cast" or "reject".
    `narrowed` (the shard is wider): "reject", or "cast" where no value changes. `retyped`: always "reject".
    `renamed` (a missing column and an added one that look alike): always "ask", which rejects and names both.
    `renames` answers it: {arrived name: the contract's name, or "" where it is a column of its own}.
    `nullability` (missing values in a column that never had one) and `category` (a text value that no earlier shard held): "accept",
    "warn" or "reject".
    """

    added: str = "reject"
    missing: str = "reject"
    widened: str = "cast"
    narrowed: str = "reject"
    nullability: str = "accept"
    category: str = "accept"
    renames: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        allowed = {
            "added": ("reject", "ignore", "accept"),
            "missing": ("reject", "null"),
            "widened": ("cast", "reject"),
            "narrowed": ("reject", "cast"),
            "nullability": ("accept", "warn", "reject"),
            "category": ("accept", "warn", "reject"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InvalidPipeline(f"SchemaPolicy({name}={getattr(self, name)!r})", f"one of {list(values)}", "choose one")


@dataclass(frozen=True)
class Table:
    """A table that grows by shards: its key, event time, owner and checks.

    `key` is one column or several; `time` the event time's column. `policy` says what a shard of other columns means, `personal` which
    columns are dropped or keyed-hashed on arrival. `slices` names text columns by whose values shards are tagged and profiled, `tags` is
    a function from a shard's columns to tags of your own {name: text, number or truth value}. Rows older than `retention` may be removed.
    `source` is where its shards come from: landing/<name>/ when None.
    """

    name: str
    key: str | tuple[str, ...]
    time: str
    owner: str = ""
    description: str = ""
    checks: Sequence[Check] = ()
    policy: SchemaPolicy = field(default_factory=SchemaPolicy)
    personal: Sequence[Personal] = ()
    slices: Sequence[str] = ()
    tags: Callable[[Columns], Mapping[str, Any]] | None = None
    retention: str = ""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    source: Source | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "table")
        for name in ("personal", "slices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.retention:
            duration(self.retention)
        key = (self.key,) if isinstance(self.key, str) else tuple(self.key)
        if not key or not all(isinstance(column, str) and column for column in key):
            raise InvalidPipeline(f"table {self.name!r} has key {self.key!r}", "one column name or several", "name the key")
        if not isinstance(self.time, str) or not self.time:
            raise InvalidPipeline(f"table {self.name!r} has time {self.time!r}", "a column name", "name the event time")
        object.__setattr__(self, "checks", tuple(self.checks))
        if self.source is not None and not isinstance(self.source, Source):
            raise InvalidPipeline(
                f"source {self.source!r} of table {self.name!r}",
                "an object with explain(), pending(cursor), fetch(arrival, cursor, folder) and locate(text, cursor)",
                "use ct.Folder, ct.ObjectStore, ct.IcebergTable, ct.DeltaTable or your own source",
            )
        for check in self.checks:
            if not isinstance(check, Check):
                raise InvalidPipeline(
                    f"{check!r} is not a check of table {self.name!r}",
                    "an object with columns(), violations(rows, past), explain() and limit()",
                    "use ct.NotNull, ct.Within, ct.Unique or your own check",
                )
        for part in self.personal:
            if not isinstance(part, Personal):
                raise InvalidPipeline(
                    f"{part!r} in personal of table {self.name!r}", "ct.dropped or ct.keyed", "use one of them"
                )
            if part.column in (*key, self.time):
                raise InvalidPipeline(
                    f"table {self.name!r}: {part.column!r} is personal and the key or event time",
                    "a key and a time that may be stored",
                    "choose another key, or leave it out of personal",
                )

    @property
    def keys(self) -> tuple[str, ...]:
        """The key's columns."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)


@dataclass(frozen=True)
class Pipeline:
    """The whole loop of one model as a value. The first table its label's column belongs to is `table`.

    `rows` chooses which of the rows before the holdout train; several selectors must agree on a row. `weights` say how much each of them
    counts; several multiply. A run is refused as invalid when the labels that came since the champion was trained differ from its own
    beyond chance and by more than `label_jump`: the factor of a class's odds, or so many deviations of a number.
    `hooks` are asked and told while a rollout goes on: see ct.Hook.
    `sweep` says who chooses the trials of `ct sweep`: ct.Random (when None), ct.Asha, ct.Bayes or ct.Population.
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
    rows: Selector | Sequence[Selector] = ()
    weights: Sequence[Weigher] = ()
    label_jump: float = 3.0
    sweep: Any = None
    hooks: Sequence[Any] = field(default=(), metadata={"says": "nothing"})

    def __post_init__(self) -> None:
        check_name(self.name, "pipeline")
        if not isinstance(self.rows, (list, tuple)):
            object.__setattr__(self, "rows", (self.rows,))
        for name in ("features", "retrain", "segments", "tables", "rows", "weights", "hooks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
        for name, role in roles.items():
            if not isinstance(getattr(self, name), role):
                faults.append(f"{name} is {getattr(self, name)!r}, expected a ct.{role.__name__}")
        for part in self.features:
            if not isinstance(part, Feature):
                faults.append(f"feature {part!r} lacks outputs(), inputs(), lookups() or compute()")
        if not self.features:
            faults.append("there are no features")
        for name in ("model", "gate", "rollout", *(() if self.sweep is None else ("sweep",))):
            part = getattr(self, name)
            if isinstance(part, type) or not callable(getattr(part, "validate", None)):
                faults.append(f"{name} is {part!r}, expected a part with validate()")
            else:
                faults += [f"{name}: {fault}" for fault in part.validate()]
        for hook in self.hooks:
            if not callable(getattr(hook, "validate", None)):
                faults.append(f"hooks holds {hook!r}, expected a ct.Hook")
            else:
                faults += [f"hooks: {fault}" for fault in hook.validate()]
        for name in ("only", "without"):
            asked = [segment for segment, _ in getattr(self.rollout, name, ())]
            if unknown := sorted(set(asked) - set(self.segments)):
                faults.append(f"rollout: {name} reads {unknown}, which {'is' if len(unknown) == 1 else 'are'} not in segments")
        if not faults and callable(suits := getattr(self.gate, "suits", None)):
            faults += [f"gate: {fault}" for fault in suits(self.label.objective, self.segments)]
        for trigger in self.retrain:
            if not callable(getattr(trigger, "decide", None)):
                faults.append(f"retrain holds {trigger!r}, expected a trigger such as ct.NewData")
        for chooser in self.selectors:
            if not isinstance(chooser, Selector):
                faults.append(f"rows holds {chooser!r}, expected a selector such as ct.newest")
            elif unknown := sorted(set(chooser.segments()) - set(self.segments)):
                faults.append(f"rows reads {unknown}, which {'is' if len(unknown) == 1 else 'are'} not in segments")
        for weigher in self.weights:
            if not isinstance(weigher, Weigher):
                faults.append(f"weights holds {weigher!r}, expected a weigher such as ct.recent")
            elif unknown := sorted(set(weigher.segments()) - set(self.segments)):
                faults.append(f"weights reads {unknown}, which {'is' if len(unknown) == 1 else 'are'} not in segments")
        if isinstance(self.label_jump, bool) or not isinstance(self.label_jump, (int, float)) or not self.label_jump > 1:
            faults.append(f"label_jump is {self.label_jump!r}, expected a factor above 1")
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
                and self.label.column in (*lookup.columns, *(part[0] for part in lookup.where))
                and lookup.known_at != self.label.known_at
            ]
        late = {self.label.column, self.label.known_at}
        for feature in self.features:
            if leaked := late & {*feature.inputs(), *(name for lookup in feature.lookups() for name in lookup.by)}:
                faults.append(f"{sorted(leaked)} is known only after the prediction and cannot be a feature of its own row")
        return faults

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The predicted table first, then the others."""
        return (self.table, *(table for table in self.tables if table.name != self.table.name))

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """What chooses the training rows; all of them must agree. None of them: every row trains."""
        return (self.rows,) if isinstance(self.rows, Selector) else tuple(self.rows)

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
