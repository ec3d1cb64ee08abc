"""The profiles of a table's shards together, folded from a journal: all rows, shard by shard, what the next shard is profiled like."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ct.data import catalog, profiled
from ct.data.profile import Categories, Numbers, Profiles
from ct.ids import sha256
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New

COLUMNS = [["at", "timestamp[us, tz=UTC]"], ["shop", "string"], ["price", "double"]]


def rows(seed: int, n: int = 200, **more: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shop = rng.choice(np.array(["a", "b", "c"], dtype=object), n)
    return {"at": rng.integers(0, 10**15, n), "shop": shop, "price": rng.normal(seed, 1, n), **more}


@dataclass(frozen=True)
class Sales:
    """A table in a journal whose shards are profiled as ingest does it."""

    journal: Journal
    artifacts: Artifacts

    def publish(self, shard: str, columns: dict[str, np.ndarray]) -> str:
        like = profiled.reference(self.journal, self.artifacts, "sales")
        data = {
            "shard": shard,
            "sha256": sha256(shard),
            "rows": len(columns["at"]),
            "snapshot": 1,
            "file": f"{shard}.parquet",
            "time_min": int(columns["at"].min()),
            "time_max": int(columns["at"].max()),
            "tags": {},
            "profile": self.artifacts.put(Profiles.of(columns, ["shop"], like).to_bytes()),
        }
        self.journal.append("table/sales", [New("ShardPublished", data)])
        return sha256(shard)

    def rewrite(self, shards: dict[str, object], gone: Sequence[str] = ()) -> None:
        data = {"file": "new.parquet", "file_sha256": "", "shards": shards, "gone": list(gone)}
        self.journal.append("table/sales", [New(catalog.REWRITTEN, data)])

    def whole(self) -> Profiles:
        found = profiled.whole(self.journal, self.artifacts, "sales")
        assert found is not None
        return found


@pytest.fixture
def sales(tmp_path: Path) -> Iterator[Sales]:
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    journal.append("table/sales", [New("TableCreated", {"schema": COLUMNS, "owner": "shop"})])
    yield Sales(journal, Artifacts(str(tmp_path / "artifacts")))
    journal.close()


def test_before_the_first_shard_there_is_nothing(sales: Sales) -> None:
    assert profiled.whole(sales.journal, sales.artifacts, "sales") is None
    assert profiled.reference(sales.journal, sales.artifacts, "sales") is None
    assert profiled.profiles(sales.journal, sales.artifacts, "sales") == []
    assert profiled.whole(sales.journal, sales.artifacts, "unheard-of") is None


def test_all_shards_together_are_the_profile_of_all_rows(sales: Sales) -> None:
    parts = [rows(seed) for seed in range(4)]
    for number, part in enumerate(parts):
        sales.publish(f"shard-{number}", part)
    first = Profiles.of(parts[0], ["shop"])
    every = Profiles.of({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, ["shop"], first)
    found = sales.whole()
    assert found.slices() == every.slices()
    for a, b in ((found.whole, every.whole), (found.slice("shop", "b"), every.slice("shop", "b"))):
        assert a is not None
        assert b is not None
        assert {name: c.counts for name, c in a.columns.items()} == {name: c.counts for name, c in b.columns.items()}
    price = found.whole.columns["price"]
    assert isinstance(price, Numbers)
    assert price.count == 800
    assert price.quantiles(0.5)[0] == pytest.approx(np.median(np.concatenate([p["price"] for p in parts])), abs=0.5)  # type: ignore[index]
    over_time = profiled.profiles(sales.journal, sales.artifacts, "sales")
    assert [shard.shard for shard, _ in over_time] == ["shard-0", "shard-1", "shard-2", "shard-3"]
    means = [made.whole.columns["price"].mean for _, made in over_time]  # type: ignore[union-attr]
    assert means == pytest.approx([0, 1, 2, 3], abs=0.3)


def test_a_column_that_the_table_gained_is_missing_in_older_shards_and_merges_from_then_on(sales: Sales) -> None:
    sales.publish("old", rows(0))
    schema = [*COLUMNS, ["tax", "double"]]
    sales.journal.append("table/sales", [New("ContractChanged", {"schema": schema, "added": ["tax"], "shard": "gains"})])
    sales.publish("gains", rows(1, tax=np.arange(200.0)))
    sales.publish("later", rows(2, tax=np.arange(200.0) * 3))
    tax = sales.whole().whole.columns["tax"]
    assert isinstance(tax, Numbers)
    assert (tax.count, tax.missing, tax.high) == (400, 200, 597.0)


def test_a_rewritten_shard_counts_with_its_new_profile_and_a_gone_one_not_at_all(sales: Sales) -> None:
    one, two = sales.publish("one", rows(0)), sales.publish("two", rows(1))
    less = Profiles.of(rows(0, 50), ["shop"], profiled.reference(sales.journal, sales.artifacts, "sales"))
    changed = {one: {"rows": 50, "profile": sales.artifacts.put(less.to_bytes())}}
    sales.rewrite(changed)
    assert sales.whole().whole.rows == 250
    sales.rewrite({}, gone=[two])
    assert sales.whole().whole.rows == 50


def test_a_forgotten_value_is_in_no_profile_and_what_was_stored_still_merges(sales: Sales) -> None:
    for number in range(2):
        sales.publish(f"shard-{number}", rows(number, 4000))
    before = sales.whole().whole.columns["shop"]
    assert isinstance(before, Categories)
    assert profiled.forget(sales.journal, sales.artifacts, "sales", "shop", "b") == 2
    sales.publish("later", {**rows(5, 3), "shop": np.array(["a", "c", "a"], dtype=object)})
    after = sales.whole().whole.columns["shop"]
    assert isinstance(after, Categories)
    assert after.known == {"a", "c"}
    assert dict(after.counts) == {"a": before.counts["a"] + 2, "c": before.counts["c"] + 1}
    assert (after.other, after.missing) == (before.counts["b"], 0)
    assert profiled.forget(sales.journal, sales.artifacts, "sales", "shop", "b") == 0


def test_the_rows_of_a_forgotten_value_are_among_the_others_however_small_the_stored_counts_are() -> None:
    shop = np.array(["big"] * 100 + [f"v{i:03d}" for i in range(140)] * 3, dtype=object)
    made = Profiles.from_bytes(Profiles.of({"shop": shop}).to_bytes())
    assert made.counts.dtype == np.uint8
    column = profiled.without(made, "shop", "big").whole.columns["shop"]
    assert isinstance(column, Categories)
    assert (column.count, column.other, len(column.counts)) == (520, 100 + 77 * 3, 63)
