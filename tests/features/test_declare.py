"""Features as values: they survive the way through JSON, refuse what they cannot compute, and mean what they say."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from worlds import FEATURES, HOUR, TRIPS, text

from ct import about, category, cyclic, latest, numeric, window
from ct.data.columns import NO_TIME
from ct.errors import Corrupt, InvalidPipeline
from ct.features.declare import from_spec, to_spec
from ct.features.history import TableHistory
from ct.ids import fingerprint
from ct.roles import Feature

NOTHING = TableHistory({})
NOW = np.array([0])


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.outputs()[0].name)
def test_a_feature_comes_back_from_json(feature):
    back = from_spec(json.loads(json.dumps(to_spec(feature))))
    assert back == feature
    assert isinstance(back, Feature)
    assert fingerprint(back) == fingerprint(feature)
    assert back.lookups() == feature.lookups()


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "os.system", "names": ["ls"]},
        {"kind": "numeric"},
        {"kind": "numeric", "names": ["a"], "log": False, "more": 1},
        {"names": ["a"]},
        {"kind": "cyclic", "column": "t", "parts": ["minute"], "tz": "UTC"},
        {**to_spec(window(TRIPS, "late", by="town", over="6h")), "agg": "__import__"},
    ],
)
def test_a_spec_that_no_declaration_makes_is_refused(spec):
    with pytest.raises(Corrupt, match="upgrade ct"):
        from_spec(spec)


def test_a_users_own_feature_cannot_be_written_as_data():
    class Own:
        """No ready kind."""

    with pytest.raises(InvalidPipeline, match="ready kind"):
        to_spec(Own())


@pytest.mark.parametrize(
    "declare",
    [
        lambda: numeric(),
        lambda: category(""),
        lambda: cyclic("t"),
        lambda: cyclic("t", "minute"),
        lambda: cyclic("t", "hour", tz="America/New_Yrok"),
        lambda: latest(worlds.SKY, within="3h"),
        lambda: latest(worlds.SKY, "wind", within="3 hours"),
        lambda: window(TRIPS, "late", by="town", over="0h"),
        lambda: window(TRIPS, "late", by="town", over="6h", agg="median"),
        lambda: window(TRIPS, "late", by=(), over="6h"),
        lambda: window(TRIPS, "late", by="town", over="36501d"),
        lambda: window(TRIPS, "late", by="town", over="999999999999w"),
        lambda: window(TRIPS, "late", by="town", over="6h", where=[("line", "==")]),
        lambda: window(TRIPS, "late", by="town", over="6h", where=("line", "==", "A")),
        lambda: window(TRIPS, "late", by="town", over="6h", where=[("line", "==", None)]),
        lambda: window(TRIPS, "late", by="town", over="6h", where=[("late", "<", math.nan)]),
        lambda: fingerprint(numeric("a", clip=(0.0, math.inf))),
        lambda: fingerprint(about(numeric("a"), default=math.nan)),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(declare):
    with pytest.raises(InvalidPipeline):
        declare()


@pytest.mark.parametrize(
    "feature",
    [
        numeric("late"),
        window(TRIPS, "late", by="town", over="6h"),
        window(TRIPS, "leg", by="town", over="6h", where=[("late", ">", 15)]),
        window(TRIPS, "leg", by=("town", "late"), over="6h", known_at="arrives"),
        window(TRIPS, "leg", by="arrives", over="6h", known_at="arrives"),
    ],
)
def test_a_feature_that_would_tell_the_label_is_refused(feature):
    with pytest.raises(InvalidPipeline, match="known only"):
        worlds.pipeline(features=[feature])


def test_conditions_on_the_label_are_taken_once_it_is_known():
    worlds.pipeline(features=[window(TRIPS, "leg", by="town", over="6h", known_at="arrives", where=[("late", ">", 15)])])


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (numeric("a"), {"a": text(["1"])}),
        (numeric("a", log=True), {"a": np.array([5])}),
        (category("a"), {"a": np.array([5])}),
        (cyclic("a", "hour"), {"a": np.array([5.0])}),
    ],
)
def test_a_column_of_the_wrong_kind_is_named(feature, rows):
    with pytest.raises(InvalidPipeline, match="'a'"):
        feature.compute(rows, NOW, NOTHING)


def test_numbers_and_their_logarithms():
    rows = {"a": np.array([0.0, math.e - 1, -1.0, math.nan])}
    assert np.array_equal(numeric("a").compute(rows, NOW, NOTHING)["a"], rows["a"], equal_nan=True)
    assert np.array_equal(
        numeric("a", log=True).compute(rows, NOW, NOTHING)["a"], [0.0, 1.0, math.nan, math.nan], equal_nan=True
    )


def test_numbers_as_categories_have_one_spelling():
    made = category("a").compute({"a": np.array([4.0, -0.0, 1.5, math.nan])}, NOW, NOTHING)
    assert made["a"].tolist() == ["4", "0", "1.5", None]


@given(st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]))
def test_cyclic_reads_the_wall_clock(moment, tz):
    moment = moment.replace(tzinfo=UTC)
    stamp = round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    made = cyclic("t", "hour", "weekday", "month", tz=tz).compute({"t": np.array([stamp])}, NOW, NOTHING)
    local = moment.astimezone(ZoneInfo(tz))
    shares = {"hour": (local.hour * 60 + local.minute) / 1440, "weekday": local.weekday() / 7, "month": (local.month - 1) / 12}
    for part, share in shares.items():
        assert made[f"t_{part}_sin"][0] == pytest.approx(math.sin(2 * math.pi * share), abs=1e-12)
        assert made[f"t_{part}_cos"][0] == pytest.approx(math.cos(2 * math.pi * share), abs=1e-12)


def test_a_missing_time_has_no_place_on_the_circle():
    made = cyclic("t", "hour").compute({"t": np.array([NO_TIME, 6 * HOUR])}, NOW, NOTHING)
    assert np.isnan(made["t_hour_sin"][0])
    assert made["t_hour_sin"][1] == pytest.approx(1.0)


def test_latest_takes_a_newer_unknown_over_an_older_known():
    sky = {
        "town": text(["A", "A"]),
        "seen_at": np.array([HOUR, 2 * HOUR]),
        "wind": np.array([5.0, math.nan]),
        "rain": np.array([1.0, 2.0]),
    }
    feature = latest(worlds.SKY, "wind", "rain", within="3h")
    made = feature.compute({"town": text(["A"])}, np.array([3 * HOUR]), TableHistory({"sky": sky}))
    assert np.isnan(made["sky_wind"][0])
    assert made["sky_rain"][0] == 2.0
