"""The feature catalogue's fixed half: what each feature column is and what it is made from, as declared. Who uses it, the journal knows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ct.features.declare import own_features, to_spec
from ct.ids import canonical, sha256
from ct.pipeline import Pipeline
from ct.roles import Column, Feature


@dataclass(frozen=True)
class Entry:
    """One feature column. `reads` are columns by table, `request` those that the row itself brings; `definition` and `hash` tell whether
    two features are the same; `source` is the text of a user's own function, empty for ready kinds."""

    name: str
    kind: str
    type: str
    owner: str
    description: str
    default: float | None
    request: tuple[str, ...]
    reads: Mapping[str, tuple[str, ...]]
    definition: str
    hash: str
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry as plain data."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "request": list(self.request), "reads": {table: list(names) for table, names in self.reads.items()}}


def entries(pipeline: Pipeline) -> tuple[Entry, ...]:
    """Every feature column of a pipeline, in declared order. A feature without an owner is the pipeline's owner's."""
    return tuple(_entry(pipeline, feature, column) for feature in pipeline.features for column in feature.outputs())


def spec_hash(spec: Mapping[str, Any]) -> str:
    """The hash of a feature's definition as data: owner and description, which change no value, left out."""
    return sha256(canonical(_bare(spec)))[:16]


def _bare(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        if spec.get("kind") == "about":
            inner = _bare(spec["feature"])
            return inner if spec["default"] is None else {"default": spec["default"], "feature": inner}
        return {key: _bare(value) for key, value in spec.items()}
    return [_bare(item) for item in spec] if isinstance(spec, list | tuple) else spec


def _entry(pipeline: Pipeline, feature: Feature, column: Column) -> Entry:
    spec, inner = to_spec(feature), getattr(feature, "feature", feature)
    reads: dict[str, tuple[str, ...]] = {}
    for lookup in feature.lookups():
        reads[lookup.table] = tuple(dict.fromkeys([*reads.get(lookup.table, ()), *lookup.reads]))
    return Entry(
        name=column.name,
        kind=type(inner).__name__.lower(),
        type=column.kind,
        owner=getattr(feature, "owner", "") or pipeline.owner,
        description=getattr(feature, "description", "") or _doc(feature),
        default=getattr(feature, "default", None),
        request=tuple(dict.fromkeys([*feature.inputs(), *(name for lookup in feature.lookups() for name in lookup.by)])),
        reads=reads,
        definition=canonical(_bare(spec)),
        hash=spec_hash(spec),
        source=_text([feature]),
    )


def _doc(feature: Feature) -> str:
    """The first line of a user's own function's docstring."""
    own = next(iter(own_features([feature]).values()), None)
    return (inspect.getdoc(own.function) or "").partition("\n")[0] if own is not None else ""


def _text(features: Sequence[Feature]) -> str:
    return "".join(inspect.getsource(own.function) for own in own_features(features).values())
