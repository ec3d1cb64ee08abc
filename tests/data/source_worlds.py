"""One small world for each kind of source, into which rows arrive; and a project that takes them, whose ingest only notes the rows' ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

from ct.data.ingest import Outcome
from ct.data.sources import delta, extract, iceberg
from ct.data.sources.cursor import Taker
from ct.data.sources.delta import DeltaTable
from ct.data.sources.folder import Folder
from ct.data.sources.iceberg import IcebergTable
from ct.data.sources.objects import ObjectStore
from ct.ids import sha256_file
from ct.pipeline import Table
from ct.roles import Source
from ct.settings import load
from ct.store.files import Files
from ct.store.journal import Journal, New

TIME = pa.timestamp("us", tz="UTC")


def rows(ids: list[int], **more: pa.Array) -> pa.Table:
    """Rows with the ids."""
    return pa.table({"id": pa.array(ids, pa.int64()), "at": pa.array(ids, pa.int64()).cast(TIME), **more})


def parquet(table: pa.Table) -> bytes:
    """A table's bytes as a Parquet file."""
    file = BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


class World(Protocol):
    """Where rows arrive; what was there once counts as taken by looking at `ids`."""

    source: Source

    def add(self, table: pa.Table) -> None: ...


@dataclass
class InFolder:
    folder: Path
    count: int = 0

    @property
    def source(self) -> Folder:
        return Folder(str(self.folder), settle=0.0)

    def add(self, table: pa.Table) -> None:
        self.folder.mkdir(exist_ok=True)
        part = self.folder / ".part"
        part.write_bytes(parquet(table))
        os.replace(part, self.folder / f"rows-{self.count:03d}.parquet")
        self.count += 1


@dataclass
class InObjects:
    uri: str
    count: int = 0

    @property
    def source(self) -> ObjectStore:
        return ObjectStore(self.uri, settle=0.0)

    def add(self, table: pa.Table) -> None:
        Files(self.uri).put(f"year=2024/rows-{self.count:03d}.parquet", parquet(table))
        self.count += 1


@dataclass
class InIceberg:
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        properties = {"uri": f"sqlite:///{self.folder / 'catalog.db'}", "warehouse": self.folder.as_uri()}
        self.catalog = SqlCatalog("theirs", **properties)
        self.catalog.create_namespace("shop")
        self.catalog.create_table("shop.orders", rows([]).schema)
        self.source = IcebergTable("theirs", "shop.orders", {"uri": properties["uri"]})

    @property
    def table(self) -> Any:
        return self.catalog.load_table("shop.orders")

    def add(self, table: pa.Table) -> None:
        self.table.append(table)


@dataclass
class InDelta:
    folder: Path

    @property
    def source(self) -> DeltaTable:
        return DeltaTable(str(self.folder))

    @property
    def table(self) -> deltalake.DeltaTable:
        return deltalake.DeltaTable(self.folder)

    def add(self, table: pa.Table) -> None:
        deltalake.write_deltalake(self.folder, table, mode="append")


WORLDS = {"Folder": InFolder, "ObjectStore": InObjects, "IcebergTable": InIceberg, "DeltaTable": InDelta}


def in_process(monkeypatch: Any) -> None:
    """Read tables in this process: the child's start is most of the time."""

    def here(source: Any, position: str, root: Path, target: Path) -> Path:
        extract.write(*source.rows(position, root), target)
        return target

    for module in (iceberg, delta):
        monkeypatch.setattr(module, "extract", here)


@dataclass
class Project:
    """A project with one table, `orders`, fed by a source."""

    root: Path
    source: Source | None
    kill: Callable[[str], None] = lambda _: None
    suffixes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.settings = load(self.root, {})
        self.journal = Journal(self.settings.database)
        self.table = Table("orders", key="id", time="at", owner="shop", source=self.source)

    @property
    def taker(self) -> Taker:
        return Taker(self.settings, self.journal, self.ingest, digest=sha256_file)

    def ingest(self, table: Table, path: Path) -> Outcome:
        """As ct's own: known bytes are no news, and publishing is one step."""
        self.kill("before ingest")
        digest = sha256_file(path)
        known = [event.data["sha256"] for event in self.journal.read("table/orders")]
        found = pq.read_table(path)
        if digest not in known:
            event = New("ShardPublished", {"sha256": digest, "shard": path.stem, "ids": found["id"].to_pylist()})
            self.journal.append("table/orders", [event])
        self.kill("after ingest")
        return Outcome("duplicate" if digest in known else "published", table.name, path.stem, digest, found.num_rows)

    def take(self, limit: int | None = None) -> list[Outcome]:
        return list(self.taker.take_new(self.table, limit=limit))

    @property
    def shards(self) -> list[tuple[str, list[int]]]:
        """Name and ids of each published shard."""
        return [(event.data["shard"], event.data["ids"]) for event in self.journal.read("table/orders")]

    @property
    def ids(self) -> list[int]:
        """All published ids, in order of publication."""
        return [one for _, ids in self.shards for one in ids]
