"""One transformation: right by a slow oracle, the same bits for one row and many, from tables and from the online store, and blind to the future."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import FEATURES, HOUR, bits, with_legs

from ct import window
from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.features.history import TableHistory
from ct.features.online import OnlineStore
from ct.features.online.sqlite import SqliteShelf
from ct.features.transform import lookups_of, span_us, transform

LOOKUPS = lookups_of(FEATURES)


def everything(trips, sky):
    rows = with_legs(trips)
    return rows, rows["leaves"], TableHistory({"trips": trips, "sky": sky})


@settings(max_examples=150, deadline=None)
@given(worlds.trips(), worlds.sky())
def test_windows_and_latest_agree_with_looking_at_every_row(trips, sky):
    rows, times, history = everything(trips, sky)
    made = transform(FEATURES, rows, times, history)
    for at, time in enumerate(times.tolist()):
        row = {name: rows[name][at] for name in rows}
        for feature in FEATURES[5:]:
            over = span_us(feature.lookups()[0])
            known = worlds.known_before(trips, feature.by, row, time, over, "arrives", "trip", ("late",))
            expected = worlds.aggregate(feature.agg[0], [value for (value,) in known])
            found = made[feature.outputs()[0].name][at]
            close = dict(rel=1e-9, abs=1e-6) if feature.agg[0] in ("sum", "mean", "std") else dict(rel=0, abs=0)
            if feature.agg[0] == "std" and not math.isnan(expected):
                close = dict(rel=1e-6, abs=1e-6 * max(1.0, max(abs(v) for (v,) in known if v == v)))
            if feature.agg[0] in ("sum", "mean") and not math.isnan(expected):
                close = dict(rel=1e-9, abs=1e-9 * max(1.0, *(abs(v) for (v,) in known if v == v)))
            assert found == pytest.approx(expected, nan_ok=True, **close)
        reports = worlds.known_before(sky, ("town",), row, time, 3 * HOUR, "seen_at", "town", ("wind", "rain"))
        newest = reports[-1] if reports else (math.nan, math.nan)
        assert bits(np.array(newest)) == bits(np.array([made["sky_wind"][at], made["sky_rain"][at]]))


@settings(max_examples=80, deadline=None)
@given(worlds.trips(low=1), worlds.sky(), st.randoms(use_true_random=False))
def test_one_row_many_rows_and_the_online_store_give_the_same_bits(trips, sky, random):
    rows, times, history = everything(trips, sky)
    whole = transform(FEATURES, rows, times, history)
    with tempfile.TemporaryDirectory() as folder:
        store = OnlineStore(SqliteShelf(Path(folder) / "online.db"))
        order = list(range(len(times)))
        random.shuffle(order)
        for at in order:  # one by one, in any order, asked in between
            store.push(LOOKUPS, "trips", {name: values[[at]] for name, values in trips.items()})
            transform(FEATURES, {name: values[[0]] for name, values in rows.items()}, times[[0]], store)
        store.push(LOOKUPS, "sky", sky)
        batch = transform(FEATURES, rows, times, store)
        for at in range(len(times)):
            one = {name: values[[at]] for name, values in rows.items()}
            singles = [transform(FEATURES, one, times[[at]], source) for source in (history, store)]
            for name, values in whole.items():
                for single in singles:
                    assert bits(single[name]) == bits(values[[at]]), name
        store.close()
    assert {name: bits(values) for name, values in whole.items()} == {name: bits(values) for name, values in batch.items()}


@settings(max_examples=100, deadline=None)
@given(worlds.trips(low=1), worlds.sky(), worlds.trips(), worlds.sky(), worlds.hours)
def test_nothing_known_at_or_after_a_moment_changes_rows_up_to_it(trips, sky, other, later_sky, moment):
    """Replace, add and drop whatever became known at `moment` or later: earlier rows keep every bit."""
    rows = {name: values[trips["leaves"] <= moment] for name, values in with_legs(trips).items()}

    def mixed(past, future, known_at):
        old, new = past[known_at] < moment, future[known_at] >= moment
        return {name: np.concatenate([past[name][old], future[name][new]]) for name in past}

    before = transform(FEATURES, rows, rows["leaves"], TableHistory({"trips": trips, "sky": sky}))
    changed = {"trips": mixed(trips, other, "arrives"), "sky": mixed(sky, later_sky, "seen_at")}
    after = transform(FEATURES, rows, rows["leaves"], TableHistory(changed))
    assert {name: bits(values) for name, values in before.items()} == {name: bits(values) for name, values in after.items()}


def test_the_property_sees_a_leak():
    """The perturbation above is no empty promise: a window that trusts the wrong time does change."""
    hasty = (window(worlds.TRIPS, "late", by="town", over="6h"),)  # known when the trip leaves, it claims
    trips = {
        "trip": worlds.text(["p", "q"]),
        "leaves": np.array([0, HOUR]),
        "town": worlds.text(["A", "A"]),
        "line": worlds.text(["B", "B"]),
        "late": np.array([5.0, 1.0]),
        "arrives": np.array([3 * HOUR, 4 * HOUR]),
    }
    changed = {**trips, "late": np.where(trips["arrives"] >= HOUR, 99.0, trips["late"])}
    before, after = (transform(hasty, trips, trips["leaves"], TableHistory({"trips": t})) for t in (trips, changed))
    assert before["late_mean_by_town_6h"][1] == 5.0
    assert after["late_mean_by_town_6h"][1] == 99.0


def test_the_span_is_closed_at_its_start_and_open_at_the_rows_time():
    feature = window(worlds.TRIPS, "late", by="town", over="6h", agg="sum", known_at="arrives")
    trips = {
        "trip": worlds.text(list("abcd")),
        "town": worlds.text(["A"] * 4),
        "late": np.array([1.0, 10.0, 100.0, 1000.0]),
        "arrives": np.array([4 * HOUR - 1, 4 * HOUR, 10 * HOUR - 1, 10 * HOUR]),
    }
    made = feature.compute({"town": worlds.text(["A"])}, np.array([10 * HOUR]), TableHistory({"trips": trips}))
    assert made["late_sum_by_town_6h"].tolist() == [110.0]


def test_missing_times_and_entities_have_no_history():
    trips = {
        "trip": worlds.text(["a", "b"]),
        "town": worlds.text(["A", None]),
        "late": np.array([1.0, 2.0]),
        "arrives": np.array([HOUR, HOUR]),
    }
    feature = window(worlds.TRIPS, "late", by="town", over="6h", agg="count", known_at="arrives")
    rows = {"town": worlds.text(["A", None, "A", "new"])}
    times = np.array([2 * HOUR, 2 * HOUR, NO_TIME, 2 * HOUR])
    made = feature.compute(rows, times, TableHistory({"trips": trips}))
    assert made["late_count_by_town_6h"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_entities_of_different_kinds_are_refused():
    trips = {
        "trip": worlds.text(["a"]),
        "town": np.array([1.0]),
        "late": np.array([1.0]),
        "arrives": np.array([HOUR]),
    }
    feature = window(worlds.TRIPS, "late", by="town", over="6h", known_at="arrives")
    with pytest.raises(InvalidPipeline, match="town"):
        feature.compute({"town": worlds.text(["1"])}, np.array([2 * HOUR]), TableHistory({"trips": trips}))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(worlds.numbers, min_size=1, max_size=400), st.sampled_from(["mean", "std", "sum", "min", "max", "last"]), st.data()
)
def test_long_spans_give_the_same_bits_alone_and_in_a_crowd(values, agg, data):
    """Sums of many numbers depend on the order of addition: the order must not depend on the neighbours."""
    from ct.features.spans import AGGREGATES

    array = np.array(values)
    edge = st.integers(0, len(values))
    pairs = [sorted(pair) for pair in data.draw(st.lists(st.tuples(edge, edge), min_size=1, max_size=8))]
    start, stop = np.array(pairs).T
    crowd = AGGREGATES[agg](array, start, stop)
    for at in range(len(start)):
        alone = AGGREGATES[agg](array[start[at] : stop[at]].copy(), np.array([0]), np.array([stop[at] - start[at]]))
        assert bits(alone) == bits(crowd[[at]])
