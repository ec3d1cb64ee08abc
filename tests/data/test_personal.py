"""Personal columns: no raw value comes to rest anywhere in the project, whatever becomes of the file, and rows of one person still meet."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import ct
from ct import settings
from ct.data import catalog, shards
from ct.data.ingest import Outcome
from ct.errors import InvalidPipeline, InvalidSettings
from ct.pipeline import SchemaPolicy

from .conftest import SALES, Place, sales

KEY = "5a" * 32
TABLE = replace(
    SALES,
    checks=[ct.NotNull("shop"), ct.quarantine(ct.Within("price", 0, 35), up_to=0.5), ct.warn(ct.OneOf("email", ["nobody"]))],
    personal=[ct.dropped("ssn"), ct.keyed("email")],
    slices=["shop"],
)
NAMES = [f"person{at:04}@example.org" for at in range(40)]
NUMBERS = [f"078-05-{1000 + at}" for at in range(40)]
RAW = (*NAMES, *NUMBERS)


def people(month: int = 1, n: int = 300) -> pa.Table:
    """Sales with the buyer's e-mail address and a number that is nobody's business."""
    rows = sales(month, n).append_column("email", pa.array([NAMES[at % 40] for at in range(n)]))
    return rows.append_column("ssn", pa.array([NUMBERS[at % 40] for at in range(n)]))


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CT_PERSONAL_KEY", KEY)


@pytest.fixture
def arrivals(tmp_path: Path) -> Path:
    """Where files come from: outside of the project."""
    folder = tmp_path / "arrivals"
    folder.mkdir()
    return folder


def texts(path: Path) -> Iterator[str]:
    """All that stands in a file: its bytes, and the values of a Parquet file, which are compressed."""
    data = path.read_bytes()
    yield data.decode("latin-1")
    if data[:4] == b"PAR1":
        rows = pq.read_table(path)
        yield json.dumps([rows.column_names, rows.to_pylist()], default=str)


def nothing_raw(place: Place) -> None:
    """No file of the project holds a raw value; and the search does find what is there."""
    found, hashed = set(), 0
    for path in place.root.rglob("*"):
        if path.is_file():
            for text in texts(path):
                found |= {value for value in RAW if value in text}
                hashed += hidden(NAMES[3]) in text
    assert not found
    assert hashed or not catalog.published(place.journal, "sales")


def hidden(value: str) -> str:
    return hmac.new(bytes.fromhex(KEY), value.encode(), hashlib.sha256).hexdigest()[:32]


def ingest(place: Place, folder: Path, rows: pa.Table, name: str, table: ct.Table = TABLE) -> Outcome:
    path = folder / name
    if path.suffix == ".csv":
        pa_csv.write_csv(rows, path)
    elif path.suffix == ".jsonl":
        frame = rows.to_pandas()
        frame["at"] = frame["at"].map(lambda at: at.isoformat())
        frame.to_json(path, orient="records", lines=True)
    else:
        pq.write_table(rows, path)
    return place.ingest(path, table)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_published_shard_holds_hashes(place: Place, arrivals: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for month in (1, 2):
        outcome = ingest(place, arrivals, people(month), f"sales-{month}.{suffix}")
        assert (outcome.kind, outcome.aside) == ("published", 75), outcome.reasons
    first, second = (shards.read(shard, ["shop", "email"]) for shard in catalog.published(place.journal, "sales"))
    assert first["email"].to_pylist()[:4] == [hidden(name) for name in NAMES[:3]] + [hidden(NAMES[4])]
    assert set(first["email"].to_pylist()) == set(second["email"].to_pylist())
    assert "ssn" not in catalog.kinds(place.journal, "sales")
    assert catalog.kinds(place.journal, "sales")["email"] == "text"
    nothing_raw(place)
    assert KEY not in caplog.text
    assert not [value for value in RAW if value in caplog.text]


def corrupt(rows: pa.Table, path: Path) -> None:
    pq.write_table(rows, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes()[:-20])


def a_value_that_is_no_number(rows: pa.Table, path: Path) -> None:
    lines = ["id,at,shop,city,price,count,email,ssn", f"1,2013-01-01T00:00:00Z,a,Rome,{NAMES[3]},1,{NAMES[4]},{NUMBERS[3]}"]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def a_line_that_is_short(rows: pa.Table, path: Path) -> None:
    path.with_suffix(".csv").write_text(f"id,at,shop,city,price,count,email,ssn\n1,{NAMES[3]},{NUMBERS[3]}\n")


def no_header(rows: pa.Table, path: Path) -> None:
    path.with_suffix(".csv").write_text(f"1,2013-01-01T00:00:00Z,a,Rome,1,1,{NAMES[3]},{NUMBERS[3]}\n" * 2)


def another_name(rows: pa.Table, path: Path) -> None:
    pq.write_table(rows.rename_columns([{"email": "e_mail"}.get(name, name) for name in rows.column_names]), path)


def half_a_json_line(rows: pa.Table, path: Path) -> None:
    path.with_suffix(".jsonl").write_text(f'{{"id": "1", "email": "{NAMES[3]}", "ssn": "{NUMBERS[3]}')


def a_list(rows: pa.Table, path: Path) -> None:
    pq.write_table(rows.set_column(6, "email", pa.array([[name] for name in rows["email"].to_pylist()])), path)


UNREADABLE: list[Callable[[pa.Table, Path], None]] = [
    corrupt, a_line_that_is_short, no_header, another_name, half_a_json_line, a_list,
]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "first"),
    [*((write, first) for write in UNREADABLE for first in (True, False)), (a_value_that_is_no_number, False)],
)
def test_of_what_cannot_be_read_nothing_is_kept_but_its_hash(
    place: Place, arrivals: Path, write: Callable[[pa.Table, Path], None], first: bool
) -> None:
    if not first:
        ingest(place, arrivals, people(1), "sales-1.parquet")
    write(people(2), arrivals / "bad.parquet")
    (path,) = arrivals.glob("bad.*")
    outcome = place.ingest(path, TABLE)
    assert outcome.kind == "quarantined"
    (held,) = catalog.quarantined(place.journal, "sales")
    assert (held["file"], held["sha256"]) == ("", outcome.sha256)
    nothing_raw(place)


REFUSED: dict[str, tuple[Callable[[pa.Table], pa.Table], SchemaPolicy]] = {
    "check": (lambda rows: rows.set_column(2, "shop", pa.nulls(300, pa.string())), SchemaPolicy()),
    "schema": (lambda rows: rows.append_column("colour", rows["shop"]), SchemaPolicy()),
    "category": (lambda rows: rows.set_column(6, "email", pc.binary_replace_slice(rows["email"], 0, 1, "P")), SchemaPolicy(category="reject")),
    "nullability": (lambda rows: rows.set_column(6, "email", pc.replace_with_mask(rows["email"], pa.array([True] + [False] * 299), pa.scalar(None, pa.string()))), SchemaPolicy(nullability="reject")),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_shard_is_kept_veiled(place: Place, arrivals: Path, why: str) -> None:
    change, policy = REFUSED[why]
    table = replace(TABLE, policy=policy, checks=[ct.NotNull("shop")])
    assert ingest(place, arrivals, people(1), "sales-1.parquet", table).kind == "published"
    outcome = ingest(place, arrivals, change(people(2)), "sales-2.parquet", table)
    assert outcome.kind == "quarantined"
    (held,) = catalog.quarantined(place.journal, "sales")
    rows = pq.read_table(held["file"])
    assert rows.num_rows == 300
    assert "ssn" not in rows.column_names
    nothing_raw(place)


def test_reasons_name_rows_and_not_their_keys(place: Place, arrivals: Path) -> None:
    table = replace(SALES, checks=[ct.Unique("id"), ct.Within("price", 0, 5)])
    outcome = ingest(place, arrivals, pa.concat_tables([sales(1), sales(1).slice(0, 3)]), "sales-1.parquet", table)
    said = json.dumps([reason.examples for reason in outcome.reasons] + [reason.found for reason in outcome.reasons])
    assert "row 0" in said
    assert "price=10" in said
    (event,) = place.journal.read("table/sales")
    assert not [at for at in range(300) if f'"1-{at}"' in json.dumps(event.data) or f"'1-{at}'" in json.dumps(event.data)]


@dataclass(frozen=True)
class FirstLetter:
    """A veil of one's own."""

    column: str

    def veil(self, values: Sequence[Any], key: bytes) -> list[str | None]:
        return [None if value is None else value[0] for value in values]


@dataclass(frozen=True)
class Wrong(FirstLetter):
    """One that forgets values."""

    def veil(self, values: Sequence[Any], key: bytes) -> list[str | None]:
        return []


def test_a_veil_of_ones_own(place: Place, arrivals: Path) -> None:
    table = replace(TABLE, checks=(), personal=[FirstLetter("email"), ct.dropped("ssn")])
    assert ingest(place, arrivals, people(1), "sales-1.parquet", table).kind == "published"
    assert set(place.warehouse.scan("sales")["email"].to_pylist()) == {"p"}
    with pytest.raises(InvalidPipeline, match="0 values for 40"):
        ingest(place, arrivals, people(2), "sales-2.parquet", replace(table, personal=[Wrong("email"), ct.dropped("ssn")]))


def test_missing_values_and_numbers_are_veiled(place: Place, arrivals: Path) -> None:
    rows = sales(1).append_column("email", pa.array([None, 7] * 150)).append_column("ssn", pa.nulls(300))
    assert ingest(place, arrivals, rows, "sales-1.parquet", replace(TABLE, checks=())).kind == "published"
    stored = place.warehouse.scan("sales")["email"]
    assert set(stored.to_pylist()) == {None, hidden("7")}


@pytest.mark.parametrize("key", ["", "5a" * 31, "no hex at all"])
def test_without_a_secret_nothing_is_read(place: Place, arrivals: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("CT_PERSONAL_KEY", key)
    with pytest.raises(InvalidSettings, match="CT_PERSONAL_KEY") as caught:
        ingest(place, arrivals, people(1), "sales-1.parquet")
    assert not key or key not in str(caught.value)
    assert place.events() == []


def test_a_secret_in_ct_toml_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "ct.toml").write_text(f'personal_key = "{KEY}"\n')
    with pytest.raises(InvalidSettings, match="CT_PERSONAL_KEY") as caught:
        settings.load(tmp_path, {})
    assert KEY not in str(caught.value)


def test_the_key_and_the_time_cannot_be_personal() -> None:
    with pytest.raises(InvalidPipeline):
        replace(SALES, personal=[ct.keyed("id")])
