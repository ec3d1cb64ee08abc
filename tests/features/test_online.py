"""The online store: a set of rows that every process sees, filled from shards, forgetting only what is out of reach."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
import worlds
from worlds import FEATURES, HOUR, SKY, START, TRIPS, bits, shard, text, with_legs

from ct.errors import InvalidPipeline
from ct.features.declare import window
from ct.features.online import LOG_ROWS, OnlineStore
from ct.features.transform import TableHistory, lookups_of, transform

LOOKUPS = lookups_of(FEATURES)
COUNT = window(TRIPS, "late", by="town", over="6h", agg="count", known_at="arrives")


@pytest.fixture
def store(tmp_path):
    made = OnlineStore(tmp_path / "online.db")
    yield made
    made.close()


def trips(count: int, *, start: int = START, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` trips over as many quarters of an hour."""
    rng = np.random.default_rng(seed)
    leaves = start + np.arange(count) * HOUR // 4
    return {
        "trip": text([f"t{seed}-{at}" for at in range(count)]),
        "leaves": leaves,
        "town": text([str(town) for town in rng.choice(["A", "B", "C"], count)]),
        "line": text([str(line) for line in rng.choice(["1", "2"], count)]),
        "late": np.where(rng.random(count) < 0.1, np.nan, rng.normal(size=count)),
        "arrives": leaves + rng.integers(1, 8, count) * HOUR // 2,
    }


def reports(count: int) -> dict[str, np.ndarray]:
    """Hourly reports of one town after the other."""
    return {
        "town": text(["ABC"[at % 3] for at in range(count)]),
        "seen_at": START + np.arange(count) * HOUR // 3,
        "wind": np.arange(count) * 1.0,
        "rain": np.zeros(count),
    }


def count_at(store: OnlineStore, time: int, town: str = "A") -> float:
    return float(COUNT.compute({"town": text([town])}, np.array([time]), store)["late_count_by_town_6h"][0])


def a_trip(number: int, arrives: int = START) -> dict[str, np.ndarray]:
    return {
        "trip": text([f"n{number}"]),
        "town": text(["A"]),
        "line": text(["1"]),
        "late": np.array([1.0]),
        "arrives": np.array([arrives]),
    }


def test_pushing_twice_changes_nothing(store):
    rows = trips(50)
    assert store.push(LOOKUPS, "trips", rows) > 0
    before = count_at(store, START + 10 * HOUR)
    assert store.push(LOOKUPS, "trips", rows) == 0
    assert count_at(store, START + 10 * HOUR) == before > 0


def test_a_push_is_seen_at_once_by_other_stores_on_the_same_file(store, tmp_path):
    reader = OnlineStore(tmp_path / "online.db")
    assert count_at(reader, START + HOUR) == 0.0
    for number in range(3):
        store.push([COUNT._lookup], "trips", a_trip(number))
        assert count_at(reader, START + HOUR) == number + 1
    reader.close()


def test_many_rows_at_once_are_seen_too(store, tmp_path):
    reader = OnlineStore(tmp_path / "online.db")
    assert count_at(reader, START + HOUR) == 0.0
    many = {
        name: np.repeat(values, LOG_ROWS // 5) if name != "trip" else text([f"m{at}" for at in range(LOG_ROWS // 5)])
        for name, values in a_trip(0).items()
    }
    store.push([COUNT._lookup], "trips", many)
    assert count_at(reader, START + HOUR) == LOG_ROWS // 5
    reader.close()


def test_a_reader_that_slept_through_the_log_starts_over(store, tmp_path, monkeypatch):
    monkeypatch.setattr("ct.features.online.LOG_ROWS", 10)
    reader = OnlineStore(tmp_path / "online.db")
    assert count_at(reader, START + HOUR) == 0.0
    for number in range(40):
        store.push([COUNT._lookup], "trips", a_trip(number))
    assert count_at(reader, START + HOUR) == 40.0
    reader.close()


def test_another_process_can_push(store, tmp_path):
    store.push([COUNT._lookup], "trips", a_trip(0))
    assert count_at(store, START + HOUR) == 1.0
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[2]); import test_online as t; from pathlib import Path\n"
        "s = t.OnlineStore(Path(sys.argv[1])); s.push([t.COUNT._lookup], 'trips', t.a_trip(1)); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "online.db"), str(worlds.Path(__file__).parent)], check=True)
    assert count_at(store, START + HOUR) == 2.0


def test_threads_push_and_read_together(store):
    failed = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 25):
                store.push([COUNT._lookup], "trips", a_trip(number))
                count_at(store, START + HOUR)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100 * at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert count_at(store, START + HOUR) == 100.0


def test_a_refused_push_leaves_nothing(store):
    with pytest.raises(InvalidPipeline, match="late"):
        store.push(LOOKUPS, "trips", {**trips(5), "late": text(["x"] * 5)})
    assert count_at(store, START + 10 * HOUR) == 0.0


def test_names_cannot_be_forged_into_other_entities(store):
    feature = window(TRIPS, "late", by=("town", "line"), over="6h", agg="count", known_at="arrives")
    rows = {**a_trip(0), "town": text(["A|"]), "line": text(["B"])}
    store.push([feature._lookup], "trips", rows)
    asked = {"town": text(["A|", "A", "A|B"]), "line": text(["B", "|B", ""])}
    made = feature.compute(asked, np.full(3, START + HOUR), store)
    assert made["late_count_by_town_line_6h"].tolist() == [1.0, 0.0, 0.0]


def test_materialized_shards_answer_as_the_whole_tables_do(store, tmp_path):
    first, second, sky = trips(200), trips(200, start=START + 50 * HOUR, seed=1), reports(330)
    shards = {
        "trips": [shard(TRIPS, first, tmp_path / "a.parquet"), shard(TRIPS, second, tmp_path / "b.parquet")],
        "sky": [shard(SKY, sky, tmp_path / "sky.parquet")],
    }
    since = shards["trips"][1].time_min
    assert store.materialize(LOOKUPS, shards, since=since) > 0
    assert store.materialize(LOOKUPS, shards, since=since) == 0, "nothing is read twice"
    whole = {name: np.concatenate([first[name], second[name]]) for name in first}
    rows = with_legs(second)
    expected = transform(FEATURES, rows, rows["leaves"], TableHistory({"trips": whole, "sky": sky}))
    found = transform(FEATURES, rows, rows["leaves"], store)
    assert {name: bits(values) for name, values in found.items()} == {name: bits(values) for name, values in expected.items()}


def test_asking_for_an_earlier_beginning_fills_in_what_is_lacking(store, tmp_path):
    shards = {"trips": [shard(TRIPS, trips(200), tmp_path / "a.parquet")]}
    late, early = START + 45 * HOUR, START + 10 * HOUR
    store.materialize([COUNT._lookup], shards, since=late)
    assert count_at(store, early) == 0.0
    store.materialize([COUNT._lookup], shards, since=early)
    whole = OnlineStore(tmp_path / "whole.db")
    whole.push([COUNT._lookup], "trips", trips(200))
    assert count_at(store, early) == count_at(whole, early) > 0
    whole.close()


def test_trimming_keeps_all_that_can_be_asked_for(store, tmp_path):
    shards = {"trips": [shard(TRIPS, trips(200), tmp_path / "a.parquet")]}
    store.materialize([COUNT._lookup], shards, since=START)
    border = START + 30 * HOUR
    kept = [count_at(store, border + step * HOUR) for step in range(10)]
    assert store.trim(border) > 0
    assert store.trim(border) == 0
    assert [count_at(store, border + step * HOUR) for step in range(10)] == kept
    store.materialize([COUNT._lookup], shards, since=border)
    assert count_at(store, START + 10 * HOUR) == 0.0
    store.materialize([COUNT._lookup], shards, since=START)
    assert count_at(store, START + 10 * HOUR) > 0, "what was forgotten can be filled in again"


def test_a_file_of_another_format_is_thrown_away(tmp_path):
    path = tmp_path / "online.db"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE known (anything TEXT)")
    old.commit()
    old.close()
    store = OnlineStore(path)
    store.push([COUNT._lookup], "trips", a_trip(0))
    assert count_at(store, START + HOUR) == 1.0
    store.close()
    again = OnlineStore(path)
    assert count_at(again, START + HOUR) == 1.0
    again.close()
