"""Looking for a text in bytes: in plain files, in compressed columns, across the edges of what is read at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data import traces
from ct.data.traces import Wanted, look, search
from ct.store.files import Files
from ct.store.journal import Journal, New

KEY = Wanted("customer-7", ("id",), (("id", "customer-7"),))
SHORT = Wanted("c-7", ("id",), (("id", "c-7"),))


def where(path: Path, wanted: Wanted = KEY) -> str:
    return look(str(path), wanted)[0]


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_text_is_found_wherever_it_lies(tmp_path_factory: pytest.TempPathFactory, before: int, after: int) -> None:
    path = tmp_path_factory.mktemp("traces") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "_PIECE", 16)
        path.write_bytes(b"x" * before + b"customer-7" + b"x" * after)
        assert where(path) == "bytes"
        path.write_bytes(b"x" * before + b"customer_7" + b"x" * after)
        assert where(path) == ""


@pytest.mark.parametrize("text", ["Zoë-Müller", 'quote"d-key'])
def test_a_text_is_found_as_json_spells_it(tmp_path: Path, text: str) -> None:
    import json

    for ascii_ in (True, False):
        (tmp_path / "file.json").write_text(json.dumps({"key": text}, ensure_ascii=ascii_))
        assert where(tmp_path / "file.json", Wanted(text, (), ())) == "bytes"


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_compressed_columns_are_decoded(tmp_path: Path, compression: str) -> None:
    texts = [f'{{"customer": "customer-{i}"}}' for i in range(2000)]
    pq.write_table(pa.table({"request": texts}), tmp_path / "a.parquet", compression=compression, write_statistics=False)
    assert where(tmp_path / "a.parquet")
    assert where(tmp_path / "a.parquet", Wanted("customer-2001", (), ())) == ""
    table = pa.table({"request": pa.array(texts).dictionary_encode()})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
    ):
        writer.write_table(table)
    assert where(tmp_path / "a.arrow") == "column request"


def test_a_key_of_numbers_is_found_as_a_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"shop": [1, 1, 2], "sale": [5, 6, 5]}), tmp_path / "a.parquet", compression="zstd")
    assert where(tmp_path / "a.parquet", Wanted("2|5", (), (("shop", 2.0), ("sale", 5.0)))) == "rows"
    assert where(tmp_path / "a.parquet", Wanted("2|6", (), (("shop", 2.0), ("sale", 6.0)))) == ""
    assert where(tmp_path / "a.parquet", Wanted("2|5", (), (("shop", "two"), ("sale", 5.0)))) == ""


def test_a_short_text_counts_in_its_own_columns_only(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("abc-7def")
    pq.write_table(pa.table({"other": ["c-7"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"id": ["c-7", "c-8"]}), tmp_path / "own.parquet")
    found = search([Files(str(tmp_path)), Files(str(tmp_path))], SHORT)
    assert [Path(address).name for address, _ in found.hits] == ["own.parquet"]
    assert found.files == 3


def test_manifests_of_iceberg_are_inflated(tmp_path: Path) -> None:
    import zlib

    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(b"lower bound customer-7") + pack.flush()
    number = lambda value: bytes([value << 1])  # noqa: E731  zigzag, below 64
    head = b"Obj\x01" + number(1) + number(10) + b"avro.codec" + number(7) + b"deflate" + number(0) + b"s" * 16
    (tmp_path / "m.avro").write_bytes(head + number(1) + number(len(block)) + block + b"s" * 16)
    assert where(tmp_path / "m.avro") == "values"
    assert where(tmp_path / "m.avro", Wanted("customer-8", (), ())) == ""


def test_half_and_empty_files_are_no_fault_and_hidden_ones_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "half.avro").write_bytes(b"Obj\x01\x02")
    (tmp_path / ".hidden").write_bytes(b"customer-7")
    found = search([Files(str(tmp_path))], KEY)
    assert [Path(address).name for address, _ in found.hits] == [".hidden"]
    assert found.files == 4
    assert where(tmp_path / "gone") == ""


def test_what_is_closed_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    pq.write_table(pa.table({"id": ["c-7"]}), tmp_path / "quarantine" / "a.parquet", compression="none")
    assert search([Files(str(tmp_path))], SHORT).hits
    assert not search([Files(str(tmp_path))], SHORT, closed=str(tmp_path / "quarantine")).hits


_OTHER = """
import sys
from ct.store.journal import Journal, New
journal = Journal(sys.argv[1], actor="other")
journal.append("other", [New("Said", {})])
journal.close()
"""


def test_looking_through_a_journal_that_is_open_here_loses_no_event(tmp_path: Path) -> None:
    """A SQLite file that is closed in a process takes the locks of that process's connections with it."""
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    here = Journal(url)
    for _ in range(2):
        here.append("here", [New("Said", {"key": "customer-7"})])
        found = search([Files(str(tmp_path))], KEY)
        assert {Path(address).name.partition(".")[0] for address, _ in found.hits} == {"journal"}
        assert search([Files(str(tmp_path))], Wanted("customer-8", (), ())).hits == ()
        subprocess.run([sys.executable, "-c", _OTHER, url], check=True)
        here.append("here", [New("Said", {})])
    here.close()
    again = Journal(url)
    assert [event.actor for event in again.read()] == ["ct", "other", "ct"] * 2
    again.close()


@given(st.integers(0, 60), st.sampled_from([16, 64, 1 << 20]), st.booleans())
def test_a_longer_text_that_may_stay_is_no_trace(
    tmp_path_factory: pytest.TempPathFactory, before: int, piece: int, also: bool
) -> None:
    path = tmp_path_factory.mktemp("traces") / "file"
    wanted = Wanted("customer-7", (), (), ("customer-70", "old-customer-7", "customer-712"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "_PIECE", piece)
        path.write_bytes(b"x" * before + b"customer-70customer-712old-customer-7" + b"customer-71" * also)
        assert where(path, wanted) == ("bytes" if also else "")


def test_a_longer_key_in_a_column_is_no_trace(tmp_path: Path) -> None:
    wanted = Wanted("customer-7", ("id",), (("id", "customer-7"),), ("customer-70", "customer-71"))
    for name, last, says in (("a.parquet", "customer-71", ""), ("b.parquet", "customer-72", "column id"), ("c.db", "x", "")):
        pq.write_table(pa.table({"id": ["customer-70", last]}), tmp_path / name, compression="zstd")
        assert where(tmp_path / name, wanted) in (says, "bytes" if says else "")
