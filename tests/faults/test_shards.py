"""Faults of a shard's way: the disk is full (F2), it comes twice and in another order (F3), two race (F4), a byte changes later (F7)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ct.data import arriving, catalog
from ct.data.tables import verified
from ct.errors import Corrupt, Unavailable
from ct.store import files

from ..data.conftest import Place, sales
from .sold import built, contents, read_here, rows, state


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, nearly full. Only root can make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system; the limit on file sizes stands for it")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "ct-tests", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to a file until the disk takes no more."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        all(os.write(handle, bytes(1 << 12)) for _ in range(10_000))
    os.close(handle)


def test_a_full_disk_is_told_and_the_ingest_resumes_once_there_is_space(full_disk: Path, make_place) -> None:
    plain, place = make_place("plain"), Place.at(full_disk / "project")
    file = plain.file(sales(1), "sales-1.parquet")
    assert place.ingest(file).kind == plain.ingest(file).kind == "published"
    more = plain.file(sales(2, 3000), "sales-2.parquet")
    ballast = full_disk / "ballast"
    fill(ballast)
    with pytest.raises(Unavailable, match=r"no space left|full|No space"):
        place.ingest(more)
    assert place.events() == ["TableCreated", "ShardPublished"]
    assert len(rows(place)) == 300
    with pytest.raises(Unavailable, match="no space left"):
        built(place)
    ballast.unlink()
    assert place.ingest(more).kind == plain.ingest(more).kind == "published"
    assert state(place) == state(plain)
    assert contents(built(place)) == contents(built(plain))
    place.journal.close()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file sizes here")
def test_a_file_that_may_not_grow_is_as_a_full_disk(make_place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "read", read_here)  # the child that reads must be able to write
    plain, place = make_place("plain"), make_place("place")
    file = plain.file(sales(1, 30_000), "sales-1.parquet")
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, limit[1]))
    try:
        with pytest.raises(Unavailable, match=r"no space left|full"):
            place.ingest(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert place.events() == []
    assert rows(place) == []
    assert place.ingest(file).kind == plain.ingest(file).kind == "published"
    assert state(place) == state(plain)


def test_the_same_files_twice_and_in_another_order(anywhere: Place, make_place) -> None:
    once, place = make_place("once"), anywhere
    names = [once.file(sales(month), f"sales-{month}.parquet") for month in (1, 2, 3)]
    for name in names:
        assert once.ingest(name).kind == "published"
    kinds = [place.ingest(names[at]).kind for at in (0, 0, 2, 0, 1, 2, 1, 1)]
    assert kinds == ["published", "duplicate", "published", "duplicate", "published", *["duplicate"] * 3]
    assert rows(place) == rows(once)
    shards = {shard.sha256: shard for shard in catalog.published(once.journal, "sales")}
    assert {shard.sha256 for shard in catalog.published(place.journal, "sales")} == set(shards)
    assert built(place).digest == built(once).digest
    assert contents(built(place)) == contents(built(once))


def test_two_machines_race_for_one_shard(anywhere: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have judged files of one name, other rows in each, and meet at a barrier before they publish: exactly one wins."""
    place = anywhere
    given = {"database_url": place.settings.database_url, "storage": place.settings.storage}
    other = Place.at(place.root, state="elsewhere", **given) if place.settings.storage else Place.at(place.root)
    if not place.settings.storage:  # as on another machine: not the same lock
        monkeypatch.setattr("ct.data.ingest.fcntl.flock", lambda *_: None)
    barrier, kinds = threading.Barrier(2), {}

    def race(who: Place, month: int) -> None:
        stage, met = who.warehouse.stage, []

        def meet(*args, **kwargs):
            staged = stage(*args, **kwargs)
            if not met:
                met.append(True)
                barrier.wait(30)
            return staged

        monkeypatch.setattr(who.warehouse, "stage", meet)
        folder = place.root / str(month)
        folder.mkdir()
        kinds[month] = who.ingest(who.file(sales(month), f"{month}/same.parquet")).kind

    threads = [threading.Thread(target=race, args=(who, month)) for who, month in ((place, 1), (other, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(kinds.values()) == ["published", "quarantined"]
    winner = next(month for month, kind in kinds.items() if kind == "published")
    assert rows(place) == sorted(sales(winner)["id"].to_pylist())
    (shard,) = catalog.published(place.journal, "sales")
    staged = {entry.name for entry in files.Files(place.settings.place("warehouse")).list("ct/sales/shards")}
    assert len(staged) == 2
    # The loser may have come as far as its branch: what the branch held is no part of the table, and goes when snapshots expire.
    assert place.warehouse.files("sales") == (shard.path,)
    assert not [name for name in place.warehouse.refs("sales") if name.startswith("audit")]
    place.journal.verify()
    other.journal.close()


@pytest.mark.parametrize("where", ["data", "footer"])
def test_a_byte_of_a_published_file_that_changed_stops_the_build(
    anywhere: Place, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = anywhere
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    before = contents(built(place))
    place.ingest(place.file(sales(2), "sales-2.parquet"))
    shard = catalog.published(place.journal, "sales")[-1]
    assert verified(shard) is shard
    data = bytearray(files.get(shard.path))
    data[len(data) // 3 if where == "data" else len(data) - 60] ^= 4
    files.put(shard.path, bytes(data))
    with pytest.raises(Corrupt, match="has the hash"):
        verified(shard)
    if where == "data":
        with pytest.raises(Corrupt):
            built(place)
    present = {entry.name for entry in files.Files(place.settings.place("features")).list()}
    assert {name: contents_of(place, name) for name in before} == before
    assert set(before) <= present


def contents_of(place: Place, name: str) -> str:
    return files.digest(files.Files(place.settings.place("features")).address(name))
