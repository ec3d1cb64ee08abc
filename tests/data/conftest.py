"""A project's stores in a temporary folder, and shards of a small table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct import NotNull, SchemaPolicy, Steady, Unique, Within, quarantine, warn
from ct.clock import Clock
from ct.data.arriving import Reader
from ct.data.ingest import Outcome, ingest
from ct.data.tables import Warehouse
from ct.pipeline import Table
from ct.settings import Settings, load
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

READER = Reader()
"""One for all tests of a process; it starts when it is first asked and ends with them."""
TIME = pa.timestamp("us", tz="UTC")
DAY = 86_400_000_000
SALES = Table(
    "sales",
    key="id",
    time="at",
    owner="shop",
    checks=[NotNull("shop", "city"), Within("price", 0, 1000), Unique("id"), Steady("price", by="shop", within=0.25)],
)

MILD = replace(
    SALES,
    checks=[quarantine(Within("price", 0, 35), up_to=0.5), warn(Within("count", 0, 5))],
    policy=SchemaPolicy(added="accept"),
)
"""Takes a new column, sets aside the quarter of the rows that is dear, and warns."""


def sales(month: int = 1, n: int = 300) -> pa.Table:
    """n sales of four shops over ten days; each shop's price is its own."""
    shop = np.array(["a", "b", "c", "d"], dtype=object)[np.arange(n) % 4]
    price = np.array([10.0, 20.0, 30.0, 40.0])[np.arange(n) % 4]
    return pa.table(
        {
            "id": pa.array([f"{month}-{i}" for i in range(n)]),
            "at": pa.array([month * 30 * DAY + i * 10 * DAY // n for i in range(n)], pa.int64()).cast(TIME),
            "shop": pa.array(shop, pa.string()),
            "city": pa.array(["Oslo" if i % 2 else "Rome" for i in range(n)]),
            "price": pa.array(price),
            "count": pa.array([i % 7 for i in range(n)], pa.int64()),
        }
    )


@dataclass(frozen=True)
class Place:
    """One project's stores."""

    root: Path
    settings: Settings
    journal: Journal
    warehouse: Warehouse
    artifacts: Artifacts

    @staticmethod
    def at(root: Path, **flags: str) -> Place:
        root.mkdir(parents=True, exist_ok=True)
        settings = load(root, {}, **flags)
        return Place(root, settings, Journal(settings.database), Warehouse(settings), Artifacts(settings.place("artifacts")))

    def file(self, rows: pa.Table, name: str) -> Path:
        path = self.root / name
        pq.write_table(rows, path)
        return path

    def ingest(self, path: Path, table: Table = SALES, clock: Clock | None = None, reader: Reader | None = None) -> Outcome:
        return ingest(
            path,
            table,
            settings=self.settings,
            journal=self.journal,
            warehouse=self.warehouse,
            artifacts=self.artifacts,
            clock=clock,
            reader=reader or READER,
        )

    def events(self, table: str = "sales") -> list[str]:
        return [event.type for event in self.journal.read(f"table/{table}")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place.at(tmp_path / "project")
    yield made
    made.journal.close()


@pytest.fixture(params=["disk", "cloud"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A project on SQLite and a local disk; then one on PostgreSQL and the S3 API."""
    flags = {}
    if request.param == "cloud":
        servers = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
        flags = {"database_url": servers[0].new(), "storage": servers[1].new()}
    made = Place.at(tmp_path / "project", **flags)
    yield made
    made.journal.close()


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    """Places by name, below the same temporary folder."""
    made: list[Place] = []

    def make(name: str) -> Place:
        made.append(Place.at(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.journal.close()
