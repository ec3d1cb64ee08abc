"""Features as data: `to_spec` and `from_spec` carry them with a model. Nothing is ever imported by a name that came from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ct.errors import Corrupt, InvalidPipeline
from ct.features.kinds import kinds
from ct.features.kinds.own import Own
from ct.roles import Feature

_UPGRADE = "upgrade ct, or retrain"


def to_spec(feature: Feature) -> dict[str, Any]:
    """A feature as plain data. Raises InvalidPipeline for a kind that serving could not rebuild from data."""
    kind = type(feature).__name__.lower()
    if type(feature) is not kinds().get(kind):
        raise InvalidPipeline(
            f"feature {feature!r} cannot be written as data", f"one of {sorted(kinds())}", "use a ready kind, or @ct.feature"
        )
    values = {field.name: _plain(getattr(feature, field.name)) for field in fields(feature)}  # type: ignore[arg-type]
    if isinstance(feature, Own):
        values["function"] = feature.source
    return {
        "kind": f"own:{feature.kind}" if isinstance(feature, Own) else kind,
        **{k: v for k, v in values.items() if k != "kind"},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_spec(value) if isinstance(value, Feature) else value


def own_features(features: Sequence[Feature]) -> dict[str, Own]:
    """The users' own functions among features, by name."""
    return {inner.name: inner for inner in map(_inner, features) if isinstance(inner, Own)}


def _inner(feature: Any) -> Any:
    return _inner(feature.feature) if hasattr(feature, "feature") else feature


def needs_code(spec: Mapping[str, Any]) -> bool:
    """Does a spec name a user's own function?"""
    inner = spec.get("feature")
    return str(spec.get("kind")).startswith("own:") or (isinstance(inner, Mapping) and needs_code(inner))


def from_spec(spec: Mapping[str, Any], own: Mapping[str, Own] | None = None) -> Feature:
    """The feature that `to_spec` described; a user's own function is taken from `own` when its source has the same hash.

    Raises Corrupt for an unknown kind, field or value, and for a function that is not there or has changed.
    """
    kind = str(spec.get("kind"))
    if kind.startswith("own:"):
        return _own(spec, own or {})
    values = {key: _value(value, own) for key, value in spec.items() if key != "kind"}
    made = kinds().get(kind)
    if made is None or made is Own or set(values) != {field.name for field in fields(made)}:
        raise Corrupt(f"a feature of kind {kind!r} with {sorted(values)}", f"one of {sorted(kinds())}", _UPGRADE)
    try:
        feature: Feature = made(**values)
    except InvalidPipeline as error:
        raise Corrupt(f"the feature {dict(spec)!r}: {error.found}", error.expected, _UPGRADE) from None
    return feature


def _value(value: Any, own: Mapping[str, Own] | None) -> Any:
    if isinstance(value, Mapping):
        return from_spec(value, own)
    return tuple(_value(item, own) for item in value) if isinstance(value, list) else value


def _own(spec: Mapping[str, Any], own: Mapping[str, Own]) -> Own:
    name = str(spec.get("name"))
    found = own.get(name)
    if found is None or to_spec(found) != dict(spec):
        state = "is not in the code at hand" if found is None else "has changed since the model was trained"
        raise Corrupt(
            f"the function of feature {name!r} {state}",
            f"a function whose source has the hash {str(spec.get('function'))[:12]}",
            "train again; a version carries its functions where the pipeline comes from a file",
        )
    return found
