"""B5: what a reader would round or drop without a word is refused, or stays text."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct.data.reading import Asked, Refused, read


def written(rows: pa.Table, path: Path) -> Path:
    pq.write_table(rows, path)
    return path


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1])
def test_b5_whole_numbers_that_a_double_would_round(tmp_path: Path, value: int) -> None:
    """Nobody may find out later that two ids have become one."""
    with pytest.raises(Refused, match="beyond 2"):
        read(written(pa.table({"a": [1, value]}), tmp_path / "ids.parquet"), Asked({}))
    assert read(written(pa.table({"a": [2**53, None]}), tmp_path / "fits.parquet"), Asked({}))["a"].to_pylist() == [2**53, None]


def test_b5_codes_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("zip,price,share\n00501,1.5,0.5\n10001,2,0\n")
    rows = read(path, Asked({}))
    assert rows["zip"].cast(pa.string()).to_pylist() == ["00501", "10001"]
    assert (rows["price"].to_pylist(), rows["share"].to_pylist()) == ([1.5, 2.0], [0.5, 0.0])
