"""Feature sets from shards: in parallel or not the same bytes, only what is new, nothing from the future, clear errors."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_online import reports, trips
from worlds import FEATURES, HOUR, SKY, START, TRIPS, bits, shard, text, with_legs

from ct import about, numeric, window
from ct.data.columns import NO_TIME, to_columns
from ct.errors import Corrupt, InvalidPipeline, NotFound
from ct.features.build import build, read
from ct.features.history import TableHistory
from ct.features.transform import transform

LINE = worlds.pipeline()
STEP = 50 * HOUR


def month(at: int) -> dict[str, np.ndarray]:
    return with_legs(trips(200, start=START + at * STEP, seed=at))


@pytest.fixture
def shards(tmp_path):
    """Three shards of trips, one of sky."""
    return {
        "trips": [shard(TRIPS, month(at), tmp_path / f"trips{at}.parquet") for at in range(3)],
        "sky": [shard(SKY, reports(500), tmp_path / "sky.parquet")],
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(left, right) -> bool:
    """Equal schema and values; any NaN equals any other."""
    columns = [{name: bits(table[name].to_numpy()) for name in table.column_names} for table in (left, right)]
    return left.schema == right.schema and columns[0] == columns[1]


def test_a_feature_set_is_the_transformation_of_all_rows(shards, tmp_path):
    made = build(LINE, shards, folder=tmp_path / "f", parallel=False)
    table = read(made)
    whole = {name: np.concatenate([month(at)[name] for at in range(3)]) for name in month(0)}
    expected = transform(FEATURES, whole, whole["leaves"], TableHistory({"trips": whole, "sky": reports(500)}))
    found = to_columns(table.select(list(expected)))
    assert {name: bits(values) for name, values in found.items()} == {name: bits(values) for name, values in expected.items()}
    assert table["_key"].to_pylist() == whole["trip"].tolist()
    assert table["_time"].to_pylist() == whole["leaves"].tolist()
    label = table["_label"].to_numpy()
    assert np.array_equal(np.isnan(label), np.isnan(whole["late"]))
    assert np.array_equal(label == 1.0, whole["late"] > 1.0)
    assert np.array_equal(table["_known_at"].to_numpy(), np.where(np.isnan(label), NO_TIME, whole["arrives"]))
    assert table["segment:town"].to_pylist() == whole["town"].tolist()


def test_ray_and_one_process_give_the_same_bytes(shards, tmp_path, ray_local):
    one = build(LINE, shards, folder=tmp_path / "one", parallel=False)
    many = build(LINE, shards, folder=tmp_path / "many", parallel=True)
    assert one.digest == many.digest
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert len(contents(tmp_path / "one")) == 3 * (1 + len(FEATURES))
    assert all(set(part.built) == {Path(file).name for file in part.files} for part in many.parts)


def test_an_error_in_a_worker_is_ours(shards, tmp_path, ray_local):
    wrong = worlds.pipeline(features=[numeric("legg")])
    with pytest.raises(InvalidPipeline, match="did you mean 'leg'"):
        build(wrong, shards, folder=tmp_path / "f", parallel=True)
    assert not (tmp_path / "f").exists()


def test_only_new_shards_are_built(shards, tmp_path):
    first = build(LINE, {**shards, "trips": shards["trips"][:2]}, folder=tmp_path / "f", parallel=False)
    assert [bool(part.built) for part in first.parts] == [True, True]
    second = build(LINE, shards, folder=tmp_path / "f", parallel=False)
    assert [bool(part.built) for part in second.parts] == [False, False, True]
    assert second.parts[:2] == tuple(replace(part, built=()) for part in first.parts)
    assert [part.built for part in build(LINE, shards, folder=tmp_path / "f").parts] == [()] * 3


def test_a_late_shard_renews_just_what_it_touches(shards, tmp_path):
    build(LINE, shards, folder=tmp_path / "f", parallel=False)
    # One more trip that arrives at the end of the second shard: within reach of the second and the third.
    late = {name: values[:1] for name, values in trips(1, start=START + 2 * STEP - 2 * HOUR, seed=9).items()}
    late = with_legs({**late, "arrives": late["leaves"] + HOUR // 2})
    more = {**shards, "trips": [*shards["trips"], shard(TRIPS, late, tmp_path / "late.parquet")]}
    made = build(LINE, more, folder=tmp_path / "f", parallel=False)
    assert [bool(part.built) for part in made.parts] == [False, True, True, True]
    files = [Path(file).name for file in made.parts[1].files]
    windows = {files[at] for at, feature in enumerate(FEATURES, 1) if any(x.table == "trips" for x in feature.lookups())}
    assert set(made.parts[1].built) == windows, "the weather and the rows' own features stay as they were"


def test_the_order_of_arrival_does_not_matter(shards, tmp_path):
    one = build(LINE, shards, folder=tmp_path / "one", parallel=False)
    turned = {name: list(reversed(files)) for name, files in shards.items()}
    other = build(LINE, turned, folder=tmp_path / "other", parallel=False)
    assert one.digest == other.digest
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert same(read(one), read(other))


def test_rows_in_a_window_come_in_order_of_time(shards, tmp_path):
    made = build(LINE, shards, folder=tmp_path / "f", parallel=False)
    whole = read(made)
    times = whole["_time"].to_numpy()
    start, stop = START + 30 * HOUR, START + 60 * HOUR
    part = read(made, start=start, stop=stop)
    assert same(part, whole.filter((times >= start) & (times < stop)))
    assert read(made, start=START - 9 * HOUR, stop=START).num_rows == 0
    assert read(made, stop=START).schema == whole.schema


def test_overlapping_shards_are_merged_in_order(tmp_path):
    files = [shard(TRIPS, with_legs(trips(60, seed=seed)), tmp_path / f"{seed}.parquet") for seed in range(2)]
    table = read(build(LINE, {"trips": files, "sky": []}, folder=tmp_path / "f", parallel=False))
    rows = list(zip(table["_time"].to_pylist(), table["_key"].to_pylist(), strict=True))
    assert rows == sorted(rows)
    assert len(rows) == 120


def test_no_part_changes_when_the_future_does(shards, tmp_path):
    """The leak test on whole files: perturb every value that became known after a moment, in every table; rows up to it keep every bit."""
    moment = START + STEP + 20 * HOUR
    rng = np.random.default_rng(5)
    shaken = {"trips": [], "sky": []}
    for name, table, known_at in (("trips", TRIPS, "arrives"), ("sky", SKY, "seen_at")):
        for at, file in enumerate(shards[name]):
            columns = to_columns(pq.read_table(file.path))
            future = columns[known_at] >= moment
            for column in ("late", "wind", "rain"):
                if column in columns:
                    columns[column] = np.where(future, rng.normal(100, 9, len(future)), columns[column])
            shaken[name].append(shard(table, columns, tmp_path / f"shaken-{name}{at}.parquet"))
    before, after = (
        read(build(LINE, files, folder=tmp_path / folder, parallel=False))
        for folder, files in (("before", shards), ("after", shaken))
    )
    names = [column.name for column in LINE.outputs]
    past = before["_time"].to_numpy() <= moment
    for name in names:
        old, new = (to_columns(table.select([name]))[name] for table in (before, after))
        assert bits(old[past]) == bits(new[past]), name
    moved = [name for name in names if bits(before[name].to_numpy()) != bits(after[name].to_numpy())]
    assert {"late_mean_by_town_6h", "sky_wind"} <= set(moved), "the perturbation must reach later rows, else it proves nothing"


def test_a_pipeline_with_no_history_yet(tmp_path):
    made = build(LINE, {"trips": [shard(TRIPS, month(0), tmp_path / "a.parquet")]}, folder=tmp_path / "f", parallel=False)
    assert np.isnan(read(made)["sky_wind"].to_numpy()).all()


def test_numbers_can_be_segments(shards, tmp_path):
    table = read(build(worlds.pipeline(segments=["leg"]), shards, folder=tmp_path / "f", parallel=False))
    assert table["segment:leg"][0].as_py() == repr(month(0)["leg"][0].item())


def test_no_shards_at_all(tmp_path):
    made = build(LINE, {"trips": [], "sky": []}, folder=tmp_path / "f", parallel=False)
    with pytest.raises(NotFound, match="no parts"):
        read(made)


def test_a_half_written_part_is_never_taken_for_a_part(shards, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ct.store.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        build(LINE, shards, folder=tmp_path / "f", parallel=False)
    monkeypatch.undo()
    assert not list((tmp_path / "f").glob("[!.]*.parquet"))
    made = build(LINE, shards, folder=tmp_path / "f", parallel=False)
    assert all(part.built for part in made.parts)
    shutil.rmtree(tmp_path / "f")


@settings(max_examples=12)
@given(st.permutations(range(4)), st.integers(1, 4), st.randoms(use_true_random=False))
def test_built_step_by_step_in_any_order_is_built_at_once(order, first, random):
    """Shards that arrive in any order, some together, give the same table as a build from nothing; what lies there is never changed."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = [shard(TRIPS, month(at), root / f"trips{at}.parquet") for at in range(3)]
        files.append(shard(TRIPS, with_legs(trips(40, start=START + STEP // 2, seed=7)), root / "late.parquet"))
        skies = [shard(SKY, reports(100), root / "sky0.parquet"), shard(SKY, reports(500), root / "sky1.parquet")]
        steps = [order[:first], *([at] for at in order[first:])]
        arrived, before = [], {}
        for step in steps:
            arrived += [files[at] for at in step]
            sky = skies if len(arrived) == len(files) else skies[: random.randint(1, 2)]
            made = build(LINE, {"trips": arrived, "sky": sky}, folder=root / "step", parallel=False)
            now = contents(root / "step")
            assert before.items() <= now.items()
            before = now
        whole = build(LINE, {"trips": files, "sky": skies}, folder=root / "whole", parallel=False)
        assert whole.digest == made.digest
        assert contents(root / "whole").items() <= before.items()
        assert same(read(whole), read(made))


def test_a_changed_feature_renews_its_own_files_only(shards, tmp_path):
    build(LINE, shards, folder=tmp_path / "f", parallel=False)
    changed = [*FEATURES[:-1], window(TRIPS, "late", by="line", over="2d", known_at="arrives")]
    made = build(worlds.pipeline(features=changed), shards, folder=tmp_path / "f", parallel=False)
    assert [part.built for part in made.parts] == [(Path(part.files[-1]).name,) for part in made.parts]
    told = [about(FEATURES[0], owner="ops", description="how far"), *FEATURES[1:]]
    again = build(worlds.pipeline(features=told), shards, folder=tmp_path / "f", parallel=False)
    assert [len(part.built) for part in again.parts] == [1] * 3, "a kind around a kind is another definition"
    reworded = [about(FEATURES[0], owner="met", description="how far, in miles"), *FEATURES[1:]]
    once_more = build(worlds.pipeline(features=reworded), shards, folder=tmp_path / "f", parallel=False)
    assert [part.built for part in once_more.parts] == [()] * 3, "who owns it and what it is said to mean changes nothing"


def cut(shards, tmp_path):
    """The shards in row groups of twenty rows."""
    made = {}
    for table, files in shards.items():
        made[table] = []
        for file in files:
            path = tmp_path / f"cut-{file.shard}.parquet"
            pq.write_table(pq.read_table(file.path), path, row_group_size=20)
            made[table].append(replace(file, path=str(path)))
    return made


@pytest.mark.parametrize(("chunk", "history"), [(40, 1 << 21), (1 << 20, 30), (40, 30)])
def test_chunks_and_turns_do_not_show(shards, tmp_path, monkeypatch, chunk, history):
    """A shard in pieces, and entities in turns, as for data beyond memory: the same table."""
    expected = read(build(LINE, shards, folder=tmp_path / "whole", parallel=False))
    monkeypatch.setattr("ct.features.parts.CHUNK_ROWS", chunk)
    monkeypatch.setattr("ct.features.reach.HISTORY_ROWS", history)
    made = build(LINE, cut(shards, tmp_path), folder=tmp_path / "cut", parallel=False)
    assert len(made.parts) == (15 if chunk == 40 else 3)
    assert same(read(made), expected)


@pytest.mark.parametrize("over", [("40h", "1h"), ("1h", "40h")])
def test_turns_are_counted_by_the_longest_span_wherever_it_stands(shards, tmp_path, monkeypatch, over):
    line = worlds.pipeline(features=[window(TRIPS, "late", by="town", over=over, agg="count", known_at="arrives")])
    expected = read(build(line, shards, folder=tmp_path / "whole", parallel=False))
    monkeypatch.setattr("ct.features.parts.CHUNK_ROWS", 20)
    monkeypatch.setattr("ct.features.reach.HISTORY_ROWS", 150)  # within reach of forty hours there are more, of one hour fewer
    assert same(read(build(line, cut(shards, tmp_path), folder=tmp_path / "turns", parallel=False)), expected)


@pytest.mark.parametrize("table", ["sky", "trips"])
def test_a_condition_on_a_number_meets_an_empty_history(tmp_path, table):
    feature = {
        "sky": window(SKY, "wind", by="town", over="1h", agg="count", where=[("rain", ">", 0.5)]),
        "trips": window(TRIPS, "late", by="town", over="1h", agg="count", known_at="arrives", where=[("leg", ">", 0.5)]),
    }[table]
    one = {name: values[:1] for name, values in month(0).items()}
    files = {"trips": [shard(TRIPS, one, tmp_path / "a.parquet")], "sky": []}
    made = read(build(worlds.pipeline(features=[feature]), files, folder=tmp_path / "f", parallel=False))
    assert made[feature.outputs()[0].name].to_pylist() == [0.0]


@pytest.mark.parametrize("feature", [
    window(TRIPS, "late", by="line", over="80h", known_at="arrives"),
    window(TRIPS, "late", by="town", over="80h", known_at="arrives", where=[("line", "==", "1")]),
    window(TRIPS, "leg2", by="town", over="80h", known_at="arrives"),
])  # fmt: skip
def test_a_column_that_the_table_gained_is_missing_in_earlier_rows(tmp_path, feature):
    """A text or number that an earlier shard lacks counts as missing there, in history too."""
    name = next(name for name in ("line", "leg2") if name in feature.lookups()[0].reads)
    old, new = month(0), month(1)
    missing = text([None] * 200) if name == "line" else np.full(200, np.nan)
    types = dict.fromkeys(("trip", "town", "line"), "string") | dict.fromkeys(("late", "leg", "leg2"), "double")
    types |= dict.fromkeys(("leaves", "arrives"), "timestamp[us, tz=UTC]")
    lacking = {column: values for column, values in old.items() if column != name}
    later = replace(shard(TRIPS, new, tmp_path / "b.parquet"), types=types)
    found = []
    for folder, columns in (("gained", lacking), ("null", {**old, name: missing})):
        (tmp_path / folder).mkdir()
        first = replace(shard(TRIPS, columns, tmp_path / folder / "a.parquet"), types=types)
        line = worlds.pipeline(features=[feature], segments=())
        found.append(read(build(line, {"trips": [first, later]}, folder=tmp_path / folder / "f", parallel=False)))
    assert same(*found)


def test_a_flipped_byte_in_a_shard_is_noticed(shards, tmp_path):
    """F7: the bytes of a published file changed on disk."""
    path = Path(shards["trips"][1].path)
    pq.write_table(pq.read_table(path), path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="'trips1'"):
        build(LINE, shards, folder=tmp_path / "f", parallel=False)


def test_a_damaged_feature_file_is_named(shards, tmp_path):
    made = build(LINE, shards, folder=tmp_path / "f", parallel=False)
    Path(made.parts[0].files[3]).write_bytes(b"ARROW1 and no more")
    with pytest.raises(Corrupt, match="built again"):
        read(made)


def test_rows_that_an_erasure_took_out_are_not_there_and_seen_by_none(shards, tmp_path):
    """A shard without two of its rows, as the catalogue tells it after an erasure, gives what a shard without them gives."""
    columns = month(1)
    gone = (3, 70)
    left = {name: np.delete(values, gone) for name, values in columns.items()}
    file = shards["trips"][1]
    told = replace(file, rows=file.rows - 2, without=gone, content="after the erasure")
    other = shard(TRIPS, left, tmp_path / "left" / "trips1.parquet") if (tmp_path / "left").mkdir() is None else None
    erased, rewritten = (
        read(
            build(
                LINE,
                {**shards, "trips": [shards["trips"][0], item, shards["trips"][2]]},
                folder=tmp_path / name,
                parallel=False,
            )
        )
        for name, item in (("a", told), ("b", other))
    )
    assert same(erased, rewritten)
