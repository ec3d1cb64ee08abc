"""Sequences of past events: against a slow, obvious search, the same while serving, never before they were known, and as a model sees them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_online import trips as many_trips
from worlds import HOUR, SKY, START, TRIPS, bits, shard, text, with_legs

import ct
from ct.data.columns import NO_TIME, to_columns
from ct.data.hashing import row_hash
from ct.features.build import build, read
from ct.features.catalog import entries
from ct.features.encode import Encoder
from ct.features.history import TableHistory
from ct.features.transform import lookups_of, transform

LATE = ct.events(TRIPS, "late", by="town", over="1d", most=3, known_at="arrives")


def expected(trips, row, by, over, known_at, where, most) -> list[float]:
    """Values and ages of the newest events of one row, by looking at every row of the table."""
    hashes, found, now = row_hash(trips, ["trip"]).tolist(), {}, int(row["leaves"])
    for at in range(len(trips["trip"])):
        moment, late = int(trips[known_at][at]), float(trips["late"][at])
        same = all(trips[name][at] is not None and trips[name][at] == row[name] for name in by)
        if same and (not where or late > 0.0) and moment != NO_TIME and now - over * HOUR <= moment < now:
            found[moment, hashes[at], np.float64(late).tobytes() if late == late else b""] = late
    newest = sorted(found, reverse=True)[:most]
    made = [value for event in newest for value in (found[event], (now - event[0]) / HOUR)]
    return made + [math.nan] * (2 * most - len(made))


@settings(max_examples=150)
@given(
    trips=worlds.trips(low=1),
    by=st.sampled_from([("town",), ("line",), ("town", "line")]),
    over=st.sampled_from([1, 6, 24]),
    most=st.sampled_from([1, 2, 5]),
    known_at=st.sampled_from(["arrives", "leaves"]),
    where=st.sampled_from([(), (("late", ">", 0),)]),
)
def test_the_newest_events_are_those_that_a_slow_search_finds(trips, by, over, most, known_at, where):
    feature = ct.events(TRIPS, "late", by=by, over=f"{over}h", most=most, known_at=known_at, where=where)
    made = transform([feature], trips, trips["leaves"], TableHistory({"trips": trips}))
    named = {(at, known) for at, known in zip(trips["trip"].tolist(), trips[known_at].tolist(), strict=True)}
    if len(named) < len(trips["trip"]):
        return  # one trip told twice at one moment: which of two different rows comes first is fixed, but by their bytes
    for at in range(len(trips["leaves"])):
        row = {name: values[at] for name, values in trips.items()}
        found = np.array([made[column.name][at] for column in feature.outputs()])
        assert bits(found) == bits(np.array(expected(trips, row, by, over, known_at, where, most)))


def test_an_event_that_was_there_without_a_number_has_an_age():
    trips = {
        "trip": text(["p", "q", "r"]),
        "town": text(["A", "A", "A"]),
        "leaves": START + np.array([0, 1, 6]) * HOUR,
        "late": np.array([5.0, math.nan, 7.0]),
        "arrives": START + np.array([2, 3, 8]) * HOUR,
    }
    made = transform([LATE], trips, trips["leaves"], TableHistory({"trips": trips}))
    found = [values.tolist()[2] for values in made.values()]
    assert [value if value == value else None for value in found] == [None, 3.0, 5.0, 4.0, None, None]


def test_serving_gives_the_bits_of_training(store, tmp_path: Path):
    whole = many_trips(300)
    line = worlds.pipeline(features=(LATE, ct.events(TRIPS, "late", by=("town", "line"), over="12h", known_at="arrives")))
    built = read(
        build(
            line,
            {"trips": [shard(TRIPS, with_legs(whole), tmp_path / "a.parquet")], "sky": []},
            folder=tmp_path / "features",
            parallel=False,
        )
    )
    trained = to_columns(built.select([column.name for column in line.outputs]))
    lookups = lookups_of(line.features)
    store.push(lookups, "trips", {name: values[::-1] for name, values in whole.items()})
    many = transform(line.features, whole, whole["leaves"], store.history(whole, lookups))
    assert {name: bits(values) for name, values in many.items()} == {name: bits(values) for name, values in trained.items()}
    for at in (0, 1, 150, 299):
        one = {name: values[[at]] for name, values in whole.items()}
        alone = transform(line.features, one, one["leaves"], store.history(one, lookups))
        assert {name: bits(values) for name, values in alone.items()} == {
            name: bits(values[[at]]) for name, values in trained.items()
        }


def test_a_model_sees_steps_of_one_scale_with_missing_ones_flagged():
    outputs = (*ct.numeric("leg").outputs(), *LATE.outputs())
    late = [np.array([1.0, 2.0, 3.0]), np.array([5.0, math.nan, 4.0]), np.full(3, math.nan)]
    ages = [np.array([1.0, 1.0, 1.0]), np.array([2.0, 3.0, 4.0]), np.full(3, math.nan)]
    names = [column.name for column in LATE.outputs()]
    columns = {"leg": np.arange(3.0)} | dict(
        zip(names, [part for pair in zip(late, ages, strict=True) for part in pair], strict=True)
    )
    encoder = Encoder.fit(columns, outputs)
    assert encoder.shape.sequences == (((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)),)
    numeric = encoder.numeric(columns)
    steps = numeric[:, np.array(encoder.shape.sequences[0])]  # [rows, steps, value value? age age?]
    assert steps[:, :, 3].tolist() == [[0, 0, 1]] * 3, "the last place of a step says whether the step is missing"
    assert steps[1, 1, 1] == 1.0, "a number may be missing in a step that is there"
    known = np.array([1.0, 2.0, 3.0, 5.0, 4.0])
    np.testing.assert_allclose(steps[0, :2, 0], (np.array([1.0, 5.0]) - known.mean()) / known.std(), rtol=1e-6)
    assert Encoder.from_json(encoder.to_json()) == encoder


def test_an_encoder_without_sequences_is_written_as_before():
    encoder = Encoder.fit({"leg": np.arange(3.0)}, ct.numeric("leg").outputs())
    assert b"sequences" not in encoder.to_json()
    assert encoder.shape.sequences == ()


def test_the_catalogue_says_what_each_column_is_made_from():
    found = entries(worlds.pipeline(features=(LATE,)))
    assert [entry.name for entry in found][:2] == ["late_event_1_by_town_1d", "late_age_1_by_town_1d"]
    assert {entry.kind for entry in found} == {"events"}
    assert set(found[0].reads["trips"]) == {"town", "late", "arrives", "trip"}
    assert found[0].request == ("town",)


@pytest.mark.parametrize("most", [0, 65, 2.0])
def test_a_number_of_events_that_cannot_be_is_refused(most):
    with pytest.raises(ct.CtError, match="1 to 64"):
        ct.events(TRIPS, "late", by="town", most=most)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ct.events(TRIPS, by="town"),
        lambda: ct.events(TRIPS, "late", by="town", over="soon"),
        lambda: ct.events(TRIPS, "late", by="town", where=[("late", "~", 1)]),
        lambda: ct.about(LATE, default=0.0),
    ],
)
def test_a_bad_declaration_is_refused(make):
    with pytest.raises(ct.CtError, match="expected"):
        make()


def test_text_cannot_be_an_events_number():
    rows = many_trips(5)
    feature = ct.events(TRIPS, "line", by="town", known_at="arrives")
    with pytest.raises(ct.CtError, match="holds text"):
        transform([feature], rows, rows["leaves"], TableHistory({"trips": rows}))


def test_another_table_of_the_same_entity_has_events_too():
    feature = ct.events(SKY, "wind", "rain", by="town", over="3h", most=2)
    names = [column.name for column in feature.outputs()]
    assert names[:3] == ["wind_event_1_by_town_3h", "rain_event_1_by_town_3h", "wind_rain_age_1_by_town_3h"]
