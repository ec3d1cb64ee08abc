"""The online store, on a file and on a server: a set of rows that every process sees, filled from shards, forgetting only what is out of reach."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import FEATURES, HOUR, SKY, START, TRIPS, bits, shard, text, with_legs

from ct import window
from ct.data.shards import Reader
from ct.errors import InvalidPipeline
from ct.features.history import TableHistory
from ct.features.kinds.window import Window
from ct.features.online import OnlineStore
from ct.features.online.shelf import LOG_ROWS
from ct.features.online.sqlite import SqliteShelf
from ct.features.transform import lookups_of, transform
from ct.store.files import Files

LOOKUPS = lookups_of(FEATURES)
COUNT = window(TRIPS, "late", by="town", over="6h", agg="count", known_at="arrives")
COUNTED = COUNT.lookups()
LATE_ONLY = window(TRIPS, "late", by="town", over="6h", agg="count", known_at="arrives", where=[("late", ">", 0.5)])
EVERY = (*FEATURES, LATE_ONLY, Window.example())


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


def test_a_push_is_seen_at_once_by_other_stores(store, opened):
    reader = opened()
    assert count_at(reader, START + HOUR) == 0.0
    for number in range(3):
        store.push(COUNTED, "trips", a_trip(number))
        assert count_at(reader, START + HOUR) == number + 1


def test_many_rows_at_once_are_seen_too(store, opened):
    reader = opened()
    assert count_at(reader, START + HOUR) == 0.0
    many = {
        name: np.repeat(values, LOG_ROWS // 5) if name != "trip" else text([f"m{at}" for at in range(LOG_ROWS // 5)])
        for name, values in a_trip(0).items()
    }
    store.push(COUNTED, "trips", many)
    assert count_at(reader, START + HOUR) == LOG_ROWS // 5


def test_a_reader_that_slept_through_the_log_starts_over(store, opened, monkeypatch):
    for place in ("sqlite", "redis"):
        monkeypatch.setattr(f"ct.features.online.{place}.LOG_ROWS", 10)
    reader = opened()
    assert count_at(reader, START + HOUR) == 0.0
    for number in range(40):
        store.push(COUNTED, "trips", a_trip(number))
    assert count_at(reader, START + HOUR) == 40.0


def test_another_process_can_push(tmp_path):
    path = tmp_path / "online.db"
    store = OnlineStore(SqliteShelf(path))
    store.push(COUNTED, "trips", a_trip(0))
    assert count_at(store, START + HOUR) == 1.0
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_online as t; from pathlib import Path\n"
        "s = t.OnlineStore(t.SqliteShelf(Path(sys.argv[1]))); s.push(t.COUNTED, 'trips', t.a_trip(1)); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(Path(__file__).parent)], check=True)
    assert count_at(store, START + HOUR) == 2.0
    store.close()


def test_threads_push_and_read_together(store):
    failed = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 25):
                store.push(COUNTED, "trips", a_trip(number))
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
    store.push(feature.lookups(), "trips", rows)
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
    store.materialize(COUNTED, shards, since=late)
    assert count_at(store, early) == 0.0
    store.materialize(COUNTED, shards, since=early)
    whole = OnlineStore(SqliteShelf(tmp_path / "whole.db"))
    whole.push(COUNTED, "trips", trips(200))
    assert count_at(store, early) == count_at(whole, early) > 0
    whole.close()


def test_trimming_keeps_all_that_can_be_asked_for(store, tmp_path):
    shards = {"trips": [shard(TRIPS, trips(200), tmp_path / "a.parquet")]}
    store.materialize(COUNTED, shards, since=START)
    border = START + 30 * HOUR
    kept = [count_at(store, border + step * HOUR) for step in range(10)]
    assert store.trim(border) > 0
    assert store.trim(border) == 0
    assert [count_at(store, border + step * HOUR) for step in range(10)] == kept
    store.materialize(COUNTED, shards, since=border)
    assert count_at(store, START + 10 * HOUR) == 0.0
    store.materialize(COUNTED, shards, since=START)
    assert count_at(store, START + 10 * HOUR) > 0, "what was forgotten can be filled in again"


def test_a_file_of_another_format_is_thrown_away(tmp_path):
    path = tmp_path / "online.db"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE known (anything TEXT)")
    old.commit()
    old.close()
    store = OnlineStore(SqliteShelf(path))
    store.push(COUNTED, "trips", a_trip(0))
    assert count_at(store, START + HOUR) == 1.0
    store.close()
    again = OnlineStore(SqliteShelf(path))
    assert count_at(again, START + HOUR) == 1.0
    again.close()


def test_rows_that_a_where_leaves_out_are_not_stored(store):
    late = {**a_trip(0), "late": np.array([0.7])}
    early = {**a_trip(1), "late": np.array([0.2])}
    unknown = {**a_trip(2), "late": np.array([np.nan])}
    assert [store.push(LATE_ONLY.lookups(), "trips", rows) for rows in (late, early, unknown)] == [1, 0, 0]


def test_spans_of_one_window_share_their_rows(store):
    several = window(TRIPS, "late", by="town", over=("6h", "1d"), agg="count", known_at="arrives")
    assert store.push(several.lookups(), "trips", a_trip(0)) == 1
    (held,) = store.freshness()
    assert held.reach == 24 * HOUR
    asked = {"town": text(["A"])}
    made = several.compute(asked, np.array([START + 10 * HOUR]), store.history(asked, several.lookups()))
    assert [values.tolist() for values in made.values()] == [[0.0], [1.0]]


def test_freshness_tells_the_newest_row_and_when_it_came(store):
    assert store.freshness() == ()
    store.push(COUNTED, "trips", a_trip(0, START + HOUR))
    store.push(COUNTED, "trips", a_trip(1, START))
    (held,) = store.freshness()
    assert held.newest == START + HOUR
    assert held.stored > START
    assert held.title == "trips by town: late known at arrives"
    assert (store.size(held.name).rows, store.size(held.name).entities) == (2, 1)
    assert store.trim(START + 20 * HOUR) == 2
    assert store.size(held.name).rows == 0
    assert store.freshness()[0].trimmed == START + 14 * HOUR


def test_a_history_holds_still_while_rows_come_in(store):
    asked, time = {"town": text(["A"])}, np.array([START + HOUR])
    store.push(COUNTED, "trips", a_trip(0))
    before = store.history(asked, COUNTED)
    store.push(COUNTED, "trips", a_trip(1))
    assert COUNT.compute(asked, time, before)["late_count_by_town_6h"].tolist() == [1.0]
    assert COUNT.compute(asked, time, store.history(asked, COUNTED))["late_count_by_town_6h"].tolist() == [2.0]


def test_the_past_of_the_store_can_be_asked_for(store):
    asked, time = {"town": text(["A"])}, np.array([START + HOUR])
    store.push(COUNTED, "trips", a_trip(0))
    moment = store.freshness()[0].stored
    while store.freshness()[0].stored == moment:
        store.push(COUNTED, "trips", a_trip(1))
    store.push(COUNTED, "trips", a_trip(0))
    past = store.history_at(asked, COUNTED, moment)
    assert COUNT.compute(asked, time, past)["late_count_by_town_6h"].tolist() == [1.0]


def test_erased_keys_are_gone_and_others_stay(store):
    for number in range(3):
        store.push(LOOKUPS, "trips", a_trip(number))
    assert count_at(store, START + HOUR) == 3.0
    assert store.erase(LOOKUPS, "trips", {"trip": text(["n1"])}) == 3  # once in each source: by town, by town and line, by line
    assert count_at(store, START + HOUR) == 2.0


def test_memory_that_is_full_forgets_and_stays_right(store, monkeypatch):
    monkeypatch.setattr("ct.features.online.store.MEMORY_BYTES", 1)
    for town in ("A", "B", "A"):
        store.push(COUNTED, "trips", {**a_trip(0), "town": text([town])})
        assert count_at(store, START + HOUR, town) == 1.0
        assert count_at(store, START + HOUR, "C") == 0.0


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds.trips(low=1), worlds.sky(), st.randoms(use_true_random=False))
def test_file_server_and_tables_give_the_same_bits(redis_url, trips, sky, random):
    """Rows pushed in any order, some twice, by two writers, with questions in between."""
    import redis

    from ct.features.online.redis import RedisShelf

    redis.Redis.from_url(redis_url).flushall()
    rows, lookups = with_legs(trips), lookups_of(EVERY)
    expected = transform(EVERY, rows, rows["leaves"], TableHistory({"trips": trips, "sky": sky}))
    pushes = [("trips", trips, at) for at in range(len(trips["trip"]))] + [("sky", sky, at) for at in range(len(sky["town"]))]
    pushes += random.sample(pushes, min(3, len(pushes)))
    random.shuffle(pushes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "online.db"
        for writers in ([OnlineStore(SqliteShelf(path)) for _ in "ab"], [OnlineStore(RedisShelf(redis_url)) for _ in "ab"]):
            for table, source, at in pushes:
                random.choice(writers).push(lookups, table, {name: values[[at]] for name, values in source.items()})
                one = {name: values[[0]] for name, values in rows.items()}
                transform(EVERY, one, one["leaves"], random.choice(writers).history(one, lookups))
            for reader in writers:
                found = transform(EVERY, rows, rows["leaves"], reader.history(rows, lookups))
                assert {name: bits(values) for name, values in found.items()} == {
                    name: bits(values) for name, values in expected.items()
                }
                reader.close()


def test_a_shard_is_read_row_group_by_row_group_and_old_ones_are_left_out(store, tmp_path, monkeypatch):
    rows = trips(200)
    made = shard(TRIPS, rows, tmp_path / "a.parquet")
    pq.write_table(pq.read_table(made.path), made.path, row_group_size=16)
    read, places = Reader.read, []

    def watched(self, columns=None, *, start=0, stop=None):
        places.append((start, stop))
        return read(self, columns, start=start, stop=stop)

    monkeypatch.setattr(Reader, "read", watched)
    since = START + 30 * HOUR
    store.materialize(COUNTED, {"trips": [made]}, since=since)
    assert all(stop - start <= 16 for start, stop in places)
    assert min(start for start, _ in places) > 0, "what nobody can ask for is not read"
    whole = OnlineStore(SqliteShelf(tmp_path / "whole.db"))
    whole.push(COUNTED, "trips", rows)
    for step in range(20):
        assert count_at(store, since + step * HOUR) == count_at(whole, since + step * HOUR)
    whole.close()


def test_a_shard_on_an_object_store_fills_the_store(s3, tmp_path):
    made = shard(TRIPS, trips(50), tmp_path / "a.parquet")
    address = Files(s3.new()).put("a.parquet", Path(made.path).read_bytes())
    store = OnlineStore(SqliteShelf(tmp_path / "online.db"))
    assert store.materialize(COUNTED, {"trips": [replace(made, path=address)]}, since=START) == 50
    store.close()
