"""Bad data files B1 to B14: each is refused or set aside with its reason, nothing that was published changes, and the parent process lives."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import ct
from ct.clock import TurnableClock
from ct.data import arriving, catalog, reading, shards
from ct.data.columns import to_columns
from ct.data.ingest import Outcome
from ct.data.reading import Asked, Refused, read
from ct.ids import sha256_file
from ct.pipeline import Table

from .conftest import DAY, SALES, TIME, Place, sales

PLAIN = replace(SALES, checks=())
NOW = TurnableClock(datetime(1970, 4, 10, tzinfo=UTC))
"""Ten days after sales(2) ended."""


def bytes_of(rows: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **options)
    return bytes(sink.getvalue())


def put(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def refused(path: Path, data: bytes) -> str:
    """What the reader says of a file; the test fails if it reads it."""
    path.write_bytes(data)
    with pytest.raises(Refused) as caught:
        read(path, Asked({}))
    return str(caught.value.args[0])


@pytest.fixture
def started(place: Place) -> Place:
    place.ingest(place.file(sales(1), "sales-1.parquet"), PLAIN)
    return place


def unchanged(place: Place, outcome: Outcome) -> str:
    """The reasons, once it is sure that the file was quarantined and nothing else happened."""
    assert outcome.kind == "quarantined"
    assert [shard.shard for shard in catalog.published(place.journal, "sales")] == ["sales-1"]
    assert place.warehouse.scan("sales").num_rows == 300
    return " ".join(reason.found for reason in outcome.reasons)


WHOLE = bytes_of(sales(2))


@pytest.mark.parametrize("sixteenth", range(16))
def test_b1_a_truncated_file(tmp_path: Path, sixteenth: int) -> None:
    said = refused(tmp_path / "cut.parquet", WHOLE[: len(WHOLE) * sixteenth // 16])
    assert "corrupt" in said or "0 bytes" in said


def test_b1_through_the_front_door(started: Place) -> None:
    path = started.root / "cut.parquet"
    path.write_bytes(WHOLE[: len(WHOLE) // 2])
    assert "corrupt" in unchanged(started, started.ingest(path, PLAIN))


def test_b2_one_flipped_bit_in_a_page(tmp_path: Path) -> None:
    """With checksums each flip is found. Without them a flip may be just another value, which no reader can tell."""
    data = bytes_of(sales(2), write_page_checksum=True, compression="zstd")
    body = int.from_bytes(data[-8:-4], "little")
    found = 0
    for at in range(4, len(data) - body - 8, 37):
        changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        path = tmp_path / "flipped.parquet"
        path.write_bytes(changed)
        try:
            rows = read(path, Asked({}))
        except Refused:
            found += 1
        else:  # a bit of a page's header that nothing is read by
            assert to_columns(rows).keys() == to_columns(sales(2)).keys()
            assert all(rows[name].cast(sales(2)[name].type).equals(sales(2)[name]) for name in rows.column_names), at
    assert found > 20


def test_b2_invalid_text_is_found_by_the_parent_too(started: Place) -> None:
    wrong = pa.Array.from_buffers(
        pa.string(), 300, [None, *pa.array(["ab"] * 300).buffers()[1:2], pa.py_buffer(b"\xff\xfe" * 300)]
    )
    path = started.file(put(sales(2), "city", wrong), "sales-2.parquet")
    assert "corrupt" in unchanged(started, started.ingest(path, PLAIN))


def test_b3_no_bytes_and_no_rows(started: Place) -> None:
    (started.root / "none.parquet").write_bytes(b"")
    assert "0 bytes" in unchanged(started, started.ingest(started.root / "none.parquet", PLAIN))
    assert started.ingest(started.file(sales(2).slice(0, 0), "sales-2.parquet"), PLAIN).kind == "empty"


def test_b4_order_of_columns_does_not_matter_and_the_rest_is_policy(started: Place) -> None:
    """Added, missing and renamed columns: see test_contract.py."""
    rows = sales(2).select(sales(2).column_names[::-1])
    assert started.ingest(started.file(rows, "sales-2.parquet"), PLAIN).kind == "published"


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("price", pa.array(["1.0"] * 300), "type string; expected type double"),
        ("price", pa.array([1] * 300, pa.decimal128(5, 2)), "the type decimal128(5, 2)"),
        ("count", pa.array([2**63] * 300, pa.uint64()), "values of type uint64 that would change"),
        ("at", sales(2)["at"].cast(pa.timestamp("us")), "times without a zone"),
        ("at", pa.array([1] * 300, pa.int64()).cast(pa.timestamp("ns", tz="UTC")), "type timestamp[ns, tz=UTC] that would change"),
        ("at", pa.array([10**15] * 300, pa.int64()).cast(pa.timestamp("s", tz="UTC")), "that would change"),
    ],
)  # fmt: skip
def test_b5_only_casts_that_lose_nothing(started: Place, column: str, values: pa.Array, says: str) -> None:
    path = started.file(put(sales(2), column, values), "sales-2.parquet")
    assert says in unchanged(started, started.ingest(path, PLAIN))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_b6_nan_and_infinity_by_a_rule_and_its_share(started: Place, value: float) -> None:
    rule = ct.NotNull("price", share=0.01) if value != value else ct.Within("price", 0, 1e9, share=0.01)
    table = replace(PLAIN, checks=[rule])
    for count, kind in ((3, "published"), (4, "quarantined")):
        rows = put(sales(2), "price", pa.array([*[value] * count, *[5.0] * (300 - count)]))
        assert started.ingest(started.file(rows, f"sales-{count}.parquet"), table).kind == kind


def test_b6_a_column_without_a_value(started: Place) -> None:
    path = started.file(put(sales(2), "price", pa.nulls(300, pa.float64())), "sales-2.parquet")
    said = unchanged(started, started.ingest(path, replace(PLAIN, checks=[ct.Varied("price")])))
    assert "price has the same value in all 300 rows, or none" in said


def test_b7_a_long_text_and_a_list(tmp_path: Path) -> None:
    rows = pa.table({"a": pa.array(["x" * 100_000_000], pa.large_string())})
    footer = pq.read_metadata(
        pa.BufferReader(data := bytes_of(rows, compression="none", use_dictionary=False, write_statistics=False))
    )
    with pytest.raises(Refused, match="a cell of over"):
        reading._measured(footer, rows.schema, len(data))  # from the footer alone
    assert "a cell of over" in refused(tmp_path / "long.parquet", data)
    many = pa.table({"a": pa.array(["x" * 2_000_000] * 3 + ["y"] * 1000)})
    assert "a cell of over" in refused(tmp_path / "some.parquet", bytes_of(many))
    assert "the type list" in refused(tmp_path / "list.parquet", bytes_of(pa.table({"a": [list(range(1_000_000))]})))


def test_b7_one_long_text_that_a_million_rows_name(tmp_path: Path) -> None:
    """As a dictionary it is small; written out it would be a hundred gigabytes."""
    index = pa.array(np.zeros(1_000_000, dtype=np.int32))
    rows = pa.table({"a": pa.DictionaryArray.from_arrays(index, pa.array(["x" * 100_000]))})
    path = tmp_path / "named.parquet"
    path.write_bytes(bytes_of(rows))
    assert read(path, Asked({}))["a"].type == pa.dictionary(pa.int32(), pa.string())


DOUBLE = pa.concat_tables([sales(2), put(sales(2).slice(0, 5), "price", pa.array([11.0] * 5))])


@pytest.mark.parametrize(
    ("rows", "rule", "kind", "aside"),
    [
        (DOUBLE, ct.Unique("id"), "quarantined", 0),
        (DOUBLE, ct.KeepLast("id", by="at"), "published", 5),
        (pa.concat_tables([sales(2), sales(1).slice(0, 7)]), ct.Unique("id"), "quarantined", 0),
        (pa.concat_tables([sales(2), sales(1).slice(0, 7)]), ct.KeepLast("id", by="at"), "published", 7),
        (pa.concat_tables([sales(2), sales(1).slice(0, 7)]), ct.quarantine(ct.Unique("id")), "published", 7),
    ],
)
def test_b8_a_key_that_comes_again(started: Place, rows: pa.Table, rule: object, kind: str, aside: int) -> None:
    outcome = started.ingest(started.file(rows, "sales-2.parquet"), replace(PLAIN, checks=[rule]))  # type: ignore[list-item]
    assert (outcome.kind, outcome.aside) == (kind, aside)
    if kind == "published":
        assert outcome.rows == rows.num_rows - aside
        newest = shards.read(catalog.published(started.journal, "sales")[-1])
        assert len(pc.unique(newest["id"])) == newest.num_rows
        *_, event = started.journal.read("table/sales", types=["ShardPublished"])
        held = pq.read_table(event.data["aside"]["file"])
        assert (held.num_rows, event.data["aside"]["rows"]) == (aside, aside)
        assert set(held["ct.cause"].to_pylist()) == {outcome.warnings[-1].check}


def test_b8_of_two_rows_the_later_stays(started: Place) -> None:
    started.ingest(started.file(DOUBLE, "sales-2.parquet"), replace(PLAIN, checks=[ct.KeepLast("id", by="at")]))
    newest = shards.read(catalog.published(started.journal, "sales")[-1])
    assert to_columns(newest)["price"][:5].tolist() == [11.0] * 5


YEARS = {"1970": 0, "9999": 253_402_300_799_999_999, "next year": 400 * DAY, "two days ahead": 102 * DAY}


@pytest.mark.parametrize("year", YEARS)
def test_b9_times_outside_the_window_are_set_aside(started: Place, year: str) -> None:
    times = to_columns(sales(2))["at"].copy()
    times[[3, 7]] = YEARS[year]
    table = replace(PLAIN, checks=[ct.quarantine(ct.Fresh("at", within="60d"))])
    path = started.file(put(sales(2), "at", pa.array(times).cast(TIME)), "sales-2.parquet")
    outcome = started.ingest(path, table, clock=NOW)
    assert (outcome.kind, outcome.rows, outcome.aside) == ("published", 298, 2)
    (_, shard) = catalog.published(started.journal, "sales")
    assert (shard.time_min, shard.time_max) == (60 * DAY, 60 * DAY + 299 * 10 * DAY // 300)
    assert shard.tags["window"] == [shard.time_min, shard.time_max]


def test_b9_order_does_not_matter(make_place: Callable[[str], Place]) -> None:
    found = []
    rng = np.random.default_rng(3)
    for name, order in (("a", np.arange(300)), ("b", rng.permutation(300))):
        place = make_place(name)
        rows = put(sales(1), "at", pa.array(np.repeat(np.arange(60) * DAY, 5)).cast(TIME)).take(pa.array(order))
        assert place.ingest(place.file(rows, "sales-1.parquet"), PLAIN).kind == "published"
        (shard,) = catalog.published(place.journal, "sales")
        found.append(shards.read(shard))
        footer = pq.read_metadata(shard.path).row_group(0)
        assert [column.column_index for column in footer.sorting_columns] == [1, 0]
        assert [footer.column(at).is_stats_set for at in range(footer.num_columns)] == [False, True, False, False, False, False]
    assert found[0].equals(found[1])
    times, ids = found[0]["at"].to_pylist(), found[0]["id"].to_pylist()
    assert list(zip(times, ids, strict=True)) == sorted(zip(times, ids, strict=True))


def test_b10_late_rows_are_a_new_version_and_change_no_old_one(started: Place) -> None:
    started.ingest(started.file(sales(2), "sales-2.parquet"), PLAIN)
    before = started.warehouse.snapshot("sales")
    files = {shard.path: Path(shard.path).read_bytes() for shard in catalog.published(started.journal, "sales")}
    late = put(sales(1), "id", pa.array([f"late-{at}" for at in range(300)]))
    assert started.ingest(started.file(late, "late.parquet"), PLAIN).kind == "published"
    assert started.warehouse.scan("sales").num_rows == 900
    assert started.warehouse.scan("sales", snapshot=before).num_rows == 600
    assert {path: Path(path).read_bytes() for path in files} == files


def test_b11_a_bomb_is_told_by_its_footer(tmp_path: Path) -> None:
    rows = pa.table({"a": pa.array(["x" * 1000] * 200_000)})
    data = bytes_of(rows, compression="zstd", use_dictionary=False)
    assert "unpacks to" in refused(tmp_path / "bomb.parquet", data)


DYING = {
    "killed": ("os.kill(os.getpid(), 9)", "ended with code -9"),
    "crashed": ("os.kill(os.getpid(), 11)", "ended with code -11"),
    "broken": ("1 / 0", "ended with code 1"),
    "memory": ("bytearray(8 << 30)", "needs too much memory"),
    "time": ("time.sleep(60)", "reading took over"),
    "all": ("os.killpg(0, 9)", "ended with code -9"),
}


@pytest.mark.parametrize("how", DYING)
def test_b11_a_process_that_dies_of_a_file_takes_nobody_along(
    started: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    script, (body, says) = tmp_path / "dying.py", DYING[how]
    script.write_text(
        f"import os, runpy, sys, time\nfound = runpy.run_path({reading.__file__!r})\n"
        f"def read(path, asked):\n    if 'good' in path.name: return real(path, asked)\n    {body}\n"
        "real, place = found['read'], found['serve'].__globals__\nplace['read'] = read\nplace['serve'](int(sys.argv[1]))\n"
    )
    monkeypatch.setattr(arriving, "READ_SECONDS", 5 if how == "time" else 60)
    with monkeypatch.context() as patch, closing(arriving.Reader()) as reader:
        patch.setattr(reading, "__file__", str(script))
        path = started.file(sales(2), "sales-2.parquet")
        assert says in unchanged(started, started.ingest(path, PLAIN, reader=reader))
        assert started.ingest(started.file(sales(3), "good.parquet"), PLAIN, reader=reader).kind == "published"


class Marking:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_b12_nothing_in_a_file_is_executed(started: Place) -> None:
    marker = started.root / "marker"
    pickled = pickle.dumps(Marking(marker))
    column = pa.array([pickled] * 300, pa.binary())
    field = pa.field(
        "shop", pa.binary(), metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled}
    )
    at = sales(2).column_names.index("shop")
    for name, rows in {
        "pickle": put(sales(2), "shop", column),
        "extension": sales(2).set_column(at, field, column),
        "known": put(sales(2), "shop", pa.ExtensionArray.from_storage(pa.json_(), sales(2)["shop"].combine_chunks())),
    }.items():
        unchanged(started, started.ingest(started.file(rows, f"{name}.parquet"), PLAIN))
    (started.root / "code.parquet").write_bytes(pickled)
    unchanged(started, started.ingest(started.root / "code.parquet", PLAIN))
    assert not marker.exists()


def test_b13_names(started: Place) -> None:
    for size, name in enumerate(("a\nb.parquet", "x" * 240 + ".parquet", "..\\..\\x\x07.parquet"), start=300):
        path = started.root / name
        path.write_bytes(bytes_of(sales(2, size)))
        assert "the name" in unchanged(started, started.ingest(path, PLAIN))
    below = started.root / "in" / ".." / "in"
    below.parent.parent.mkdir()
    (below / "sales-2.parquet").write_bytes(bytes_of(sales(2)))
    assert started.ingest(below / "sales-2.parquet", PLAIN).shard == "sales-2"


def test_b13_what_a_link_points_to_is_never_opened(started: Place) -> None:
    link = started.root / "link.parquet"
    link.symlink_to("/etc/passwd")
    outcome = started.ingest(link, PLAIN)
    assert "a symbolic link" in unchanged(started, outcome)
    (held,) = catalog.quarantined(started.journal, "sales")
    assert held["file"] == ""
    assert outcome.sha256 != sha256_file(Path("/etc/passwd"))


def test_b13_odd_names_of_columns(place: Place) -> None:
    odd = {"a b": "x", "ä/ö": "x", "..": "x", "x" * 200: "x", "'; drop table": "x", "new\nline": "x", "a.b": "x"}
    rows = sales(1)
    for name, value in odd.items():
        rows = rows.append_column(name, pa.array([value] * rows.num_rows))
    outcome = place.ingest(place.file(rows, "sales-1.parquet"), PLAIN)
    assert outcome.kind == "published", outcome.reasons
    assert set(odd) <= set(place.warehouse.scan("sales").column_names)
    assert set(odd) <= set(shards.read(catalog.published(place.journal, "sales")[0]).column_names)


SHIFTS: dict[str, tuple[Callable[[pa.Table], pa.Table], object, str]] = {
    "constant": (lambda rows: put(rows, "price", pa.array([10.0] * rows.num_rows)), ct.Varied("price"), "price has the same value"),
    "unit": (lambda rows: put(rows, "price", pc.multiply(rows["price"], 1000.0)), ct.Usual("price"), "price as in earlier shards"),
    "vanished": (lambda rows: put(rows, "shop", pc.if_else(pc.equal(rows["shop"], "a"), "b", rows["shop"])), ct.Present("shop"), "no row with shop a"),
}  # fmt: skip


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("mild", [False, True])
def test_b14_a_shift_that_is_a_fault(started: Place, shift: str, mild: bool) -> None:
    change, rule, says = SHIFTS[shift]
    table = replace(PLAIN, checks=[ct.warn(rule) if mild else rule])  # type: ignore[arg-type,list-item]
    assert started.ingest(started.file(sales(2), "sales-2.parquet"), table).kind == "published"
    outcome = started.ingest(started.file(change(sales(3)), "sales-3.parquet"), table)
    assert outcome.kind == ("published" if mild else "quarantined")
    assert says in [*outcome.reasons, *outcome.warnings][0].found
    if mild:
        *_, event = started.journal.read("table/sales", types=["ShardPublished"])
        assert says in event.data["warnings"][0]["found"]


def test_tags_say_what_a_shard_is(place: Place) -> None:
    table = replace(PLAIN, slices=["shop"], tags=own)
    place.ingest(place.file(sales(2), "sales-2.parquet"), table, clock=NOW)
    (shard,) = catalog.published(place.journal, "sales")
    window = [60 * DAY, 60 * DAY + 299 * 10 * DAY // 300]
    expected = {
        "source": "parquet", "origin": "file", "owner": "shop", "window": window, "spans": {"at": window},
        "freshness": 99 * DAY - window[1], "slices": {"shop": {"a": 75, "b": 75, "c": 75, "d": 75}}, "dear": True, "most": 40.0,
    }  # fmt: skip
    assert json.loads(json.dumps(shard.tags)) == expected


def own(rows: ct.roles.Columns) -> dict[str, object]:  # type: ignore[name-defined]
    return {"dear": bool(rows["price"].max() > 30), "most": rows["price"].max()}


@pytest.mark.parametrize(
    "wrong", [lambda rows: {"spans": 1}, lambda rows: {"a": [1]}, lambda rows: {"a": np.nan}, lambda rows: 1 / 0]
)
def test_wrong_tags_are_the_pipelines_fault(place: Place, wrong: Callable[[object], object]) -> None:
    table: Table = replace(PLAIN, tags=wrong)  # type: ignore[arg-type]
    with pytest.raises(ct.CtError, match="tag"):
        place.ingest(place.file(sales(1), "sales-1.parquet"), table)
    assert place.events() == []


def test_the_files_bytes_never_lie_under_a_name(started: Place) -> None:
    """What the child hands over is a file without a name, so that a killed ingest leaves none of it."""
    started.ingest(started.file(sales(2), "sales-2.parquet"), PLAIN)
    assert not [path for path in (started.settings.home / "incoming").rglob("*") if path.suffix != ".lock"]
    assert not [name for name in os.listdir(started.root) if name.startswith("rows")]
