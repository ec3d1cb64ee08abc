"""Every kind of feature, found by itself, held to one contract: it survives JSON, one row is computed like many in any order, and it
sees neither its own moment nor anything later."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))
import worlds
from worlds import bits, with_legs

from ct.features.declare import from_spec, own_features, to_spec
from ct.features.history import TableHistory
from ct.features.kinds import kinds
from ct.features.transform import transform
from ct.ids import fingerprint
from ct.roles import Column, Feature

KINDS = sorted(kinds().items())
every_kind = pytest.mark.parametrize("kind", [kind for _, kind in KINDS], ids=[name for name, _ in KINDS])


def rows_of(trips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trips with what the examples read of a row."""
    rows = with_legs(trips)
    return {**rows, "load": np.abs(rows["leg"]) // 2}


def computed(feature: Feature, rows: dict[str, np.ndarray], trips: Any, sky: Any) -> dict[str, np.ndarray]:
    return transform([feature], rows, rows["leaves"], TableHistory({"trips": trips, "sky": sky}))


def test_the_ready_kinds_are_found():
    assert {"numeric", "category", "cross", "cyclic", "latest", "window", "ratio", "own", "about"} <= dict(KINDS).keys()


@every_kind
def test_it_plays_the_role_and_survives_json(kind):
    feature = kind.example()
    assert isinstance(feature, Feature)
    assert all(isinstance(column, Column) and column.kind in ("numeric", "category") for column in feature.outputs())
    back = from_spec(json.loads(json.dumps(to_spec(feature))), own_features([feature]))
    assert back == feature
    assert fingerprint(back) == fingerprint(feature)
    assert kind.__doc__
    assert kind.example.__doc__


@every_kind
@given(trips=worlds.trips(low=1), sky=worlds.sky(), random=st.randoms(use_true_random=False))
def test_a_row_is_computed_alone_as_among_others_in_any_order(kind, trips, sky, random):
    feature, rows = kind.example(), rows_of(trips)
    whole = computed(feature, rows, trips, sky)
    assert set(whole) == {column.name for column in feature.outputs()}
    for column in feature.outputs():
        assert whole[column.name].shape == rows["leaves"].shape
        assert whole[column.name].dtype == (np.float64 if column.kind == "numeric" else object)
    order = list(range(len(rows["leaves"])))
    random.shuffle(order)
    mixed = computed(feature, {name: values[order] for name, values in rows.items()}, trips, sky)
    for at, place in enumerate(order):
        single = computed(feature, {name: values[[place]] for name, values in rows.items()}, trips, sky)
        for name, values in whole.items():
            assert bits(single[name]) == bits(values[[place]]) == bits(mixed[name][[at]])


@every_kind
@given(trips=worlds.trips(low=1), sky=worlds.sky(), other=worlds.trips(), later=worlds.sky(), moment=worlds.hours)
def test_it_does_not_see_what_was_not_known(kind, trips, sky, other, later, moment):
    """All that became known at `moment` or later is replaced: rows up to it keep every bit."""
    feature = kind.example()
    rows = {name: values[trips["leaves"] <= moment] for name, values in rows_of(trips).items()}

    def mixed(past, future, known_at):
        old, new = past[known_at] < moment, future[known_at] >= moment
        return {name: np.concatenate([past[name][old], future[name][new]]) for name in past}

    before = computed(feature, rows, trips, sky)
    after = computed(feature, rows, mixed(trips, other, "arrives"), mixed(sky, later, "seen_at"))
    assert {name: bits(values) for name, values in before.items()} == {name: bits(values) for name, values in after.items()}


@every_kind
def test_missing_is_a_value_of_its_own(kind):
    """A row of which nothing is known has no number and no text, unless a default was declared; a count is none."""
    nothing = {
        "trip": worlds.text([None]),
        "leaves": np.array([np.iinfo(np.int64).min]),
        "town": worlds.text([None]),
        "line": worlds.text([None]),
        "late": np.array([np.nan]),
        "arrives": np.array([np.iinfo(np.int64).min]),
        **dict.fromkeys(("leg", "leg2", "load"), np.array([np.nan])),
    }
    feature = kind.example()
    sky = {"town": worlds.text([]), "seen_at": np.empty(0, np.int64), "wind": np.empty(0), "rain": np.empty(0)}
    for name, values in computed(feature, nothing, nothing, sky).items():
        value = values[0]
        default = getattr(feature, "default", None)
        assert value == default or value is None or value != value or (value == 0 and "count" in name), name
