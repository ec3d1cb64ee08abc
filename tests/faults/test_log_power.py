"""Power is lost while the prediction log is written (F24): what was not synced is gone or torn at any byte, what was acknowledged is there."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.data import predictions
from ct.data.inbox import frame
from ct.data.predictions import Inbox
from ct.data.tables import Warehouse


@dataclass
class Disk:
    """What the writer asked of the disk, in order: bytes written, a file synced, a name given, a folder synced; and what it acknowledged."""

    happened: list[tuple[str, str, bytes]] = field(default_factory=list)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        write, fsync, rename = os.write, os.fsync, os.rename

        def name(handle: int) -> str:
            return Path(os.readlink(f"/proc/self/fd/{handle}")).name

        def watched_write(handle: int, data: bytes) -> int:
            count = write(handle, data)
            self.happened.append(("write", name(handle), bytes(data[:count])))
            return count

        def watched_fsync(handle: int) -> None:
            fsync(handle)
            self.happened.append(("sync", name(handle), b""))

        def watched_rename(source: Any, target: Any) -> None:
            rename(source, target)
            self.happened.append(("rename", Path(target).name, Path(source).name.encode()))

        patch.setattr(os, "write", watched_write)
        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "rename", watched_rename)

    def lost_at(self, moment: int, folder: str, keep: random.Random) -> dict[str, bytes]:
        """A disk after power was lost behind `moment` events: synced bytes, and of the others a prefix whose end may be garbage or zeros."""
        whole: dict[str, bytes] = {}
        synced: dict[str, int] = {}
        durable: set[str] = set()
        given: set[str] = set()
        for kind, name, data in self.happened[:moment]:
            match kind:
                case "write":
                    whole[name] = whole.get(name, b"") + data
                case "rename":
                    given.add(name)
                case "sync" if name == folder:
                    durable |= given
                case "sync":
                    synced[name] = len(whole.get(name, b""))
        left = {}
        for name, data in whole.items():
            if name not in durable and keep.random() < 0.5:
                continue  # its name was never durable
            end = keep.randint(synced.get(name, 0), len(data))
            torn = keep.choice((b"", bytes(len(data) - end), keep.randbytes(min(40, len(data) - end))))
            left[name] = data[:end] + torn
        return left


def record(name: str, size: int) -> dict[str, Any]:
    return {"kind": "prediction", "id": name, "epoch": 1, "key": name, "context": {"filled": "x" * size}}


def written(
    folder: Path, sizes: list[list[int]], segment_bytes: int
) -> tuple[Disk, list[tuple[int, str]], list[dict[str, Any]]]:
    """Submit lists of records. Returns the disk, after how many events each id was acknowledged, and all that was submitted."""
    disk, acknowledged, submitted = Disk(), [], []
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        inbox = Inbox(folder, "r", segment_bytes=segment_bytes)
        for at, some in enumerate(sizes):
            records = [record(f"{at}-{row}", size) for row, size in enumerate(some)]
            submitted += records
            inbox.submit(records).result(10)
            acknowledged += [(len(disk.happened), entry["id"]) for entry in records]
        inbox.close()
    return disk, acknowledged, submitted


def read_back(folder: Path, left: dict[str, bytes]) -> list[dict[str, Any]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in left.items():
        (folder / name).write_bytes(data)
    return predictions.read(folder)[0]


@settings(max_examples=25)
@given(
    sizes=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=4), min_size=1, max_size=6),
    segment_bytes=st.sampled_from([1, 250, 1 << 20]),
    seed=st.integers(0, 1_000),
)
def test_whatever_power_took_the_acknowledged_rows_are_there_and_none_is_invented(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], segment_bytes: int, seed: int
) -> None:
    folder, keep = tmp_path_factory.mktemp("inbox"), random.Random(seed)
    disk, acknowledged, submitted = written(folder, sizes, segment_bytes)
    for moment in range(len(disk.happened) + 1):
        found = read_back(folder, disk.lost_at(moment, folder.name, keep))
        told = {name for after, name in acknowledged if after <= moment}
        assert told <= {entry["id"] for entry in found}
        assert found == submitted[: len(found)], "a prefix of what was submitted, byte for byte"


def test_a_segment_torn_at_every_byte_gives_its_whole_records_and_no_more(tmp_path: Path) -> None:
    _, _, submitted = written(tmp_path / "made", [[3], [0, 7], [25]], 1 << 20)
    data = next((tmp_path / "made").glob("*.log")).read_bytes()
    ends = [len(b"".join(map(frame, submitted[:count]))) for count in range(len(submitted) + 1)]
    assert ends[-1] == len(data)
    for cut in range(len(data) + 1):
        whole = sum(end <= cut for end in ends) - 1
        for tail in (b"", bytes(16), b"\xff" * 16):
            assert read_back(tmp_path / "torn", {"r-000000.log": data[:cut] + tail}) == submitted[:whole], (cut, tail)


def test_what_is_recovered_is_committed_once_and_the_torn_end_is_kept_for_a_person(place) -> None:
    inbox = place.settings.inbox
    told = [{**record(f"p{at}", 5), "t": 1, "endpoint": "e", "version": "v1"} for at in range(3)]
    writer = Inbox(inbox, "r")
    writer.submit(told).result(10)
    writer.close()
    (segment,) = inbox.glob("*.log")
    segment.write_bytes(segment.read_bytes() + frame(record("unsynced", 5))[:-3])
    warehouse = Warehouse(place.settings)
    assert predictions.commit(place.settings, warehouse) == 3
    assert predictions.commit(place.settings, warehouse) == 0
    assert sorted(entry["id"] for entry in predictions.everything(place.settings)) == ["p0", "p1", "p2"]
    assert [path.suffix for path in inbox.glob("r-*")] == [".torn"]
