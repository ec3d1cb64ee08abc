"""The prediction log: acknowledged means durable, committed means once, unfinished means unread."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.data import predictions
from ct.data.predictions import Inbox, PredictionIds
from ct.data.tables import Warehouse
from ct.errors import InvalidRequest, Unavailable
from ct.settings import Settings


def prediction(name: str, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "prediction", "id": name, "t": 5, "event_time": 4, "endpoint": "e", "version": "v1", "arm": "stable",
        "assigned": "stable", "forced": False, "epoch": 1, "weight": 0, "score": 0.25, "latency_ms": 1.5, "error": "",
        "unit": "u", "key": "k", "context": {"line": "A"}, "request": {"x": 1.0}, "features": {"x": None},
    }  # fmt: skip
    return record | changes


def label(name: str) -> dict[str, Any]:
    return {"kind": "label", "id": name, "t": 9, "value": 20.0, "label": 1.0, "known_at": 8}


def log(folder: Path, *records: dict[str, Any], replica: str = "r") -> None:
    inbox = Inbox(folder, replica)
    inbox.submit(records).result(10)
    inbox.close()


@pytest.fixture
def place(anywhere) -> Settings:
    return anywhere.settings


def names(records: list[dict[str, Any]]) -> list[str]:
    return sorted(record["id"] for record in records)


def test_ids_are_known_without_a_lookup() -> None:
    ids, others = PredictionIds("ab" * 16), PredictionIds("cd" * 16)
    made = [ids.new() for _ in range(70_000)]
    assert len(set(made)) == 70_000
    assert ids.check(made[0]) == made[0]
    assert PredictionIds("ab" * 16).check(made[0]) == made[0]
    for wrong in (others.new(), made[0][:-2] + "aa", made[0] + "a", made[0].upper(), "p-", "", None, 7, "p-" + "!" * 26):
        with pytest.raises(InvalidRequest) as found:
            ids.check(wrong)
        assert found.value.status == 404


def test_read_follows_the_inbox(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "r", segment_bytes=300)
    cursor, seen = None, []
    for at in range(20):
        inbox.submit([label(f"a{at}"), label(f"b{at}")]).result(10)
        found, cursor = predictions.read(tmp_path, cursor)
        seen += found
    inbox.close()
    assert len(seen) == 40
    assert len(list(tmp_path.glob("*.log"))) > 1
    assert predictions.read(tmp_path, cursor) == ([], cursor)


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 400), damage=st.booleans())
def test_an_unfinished_end_is_not_read(tmp_path_factory: pytest.TempPathFactory, cut: int, damage: bool) -> None:
    folder = tmp_path_factory.mktemp("inbox")
    log(folder, *(label(f"p{at}") for at in range(4)))
    path = next(folder.glob("*.log"))
    data = path.read_bytes()
    size = len(data) // 4
    cut = min(cut, len(data) - 1)
    path.write_bytes(data[:cut] + (bytes([data[cut] ^ 255]) + data[cut + 1 :] if damage else b""))
    assert len(predictions.read(folder)[0]) == cut // size


def test_zeros_at_the_end_are_no_records(tmp_path: Path) -> None:
    log(tmp_path, label("a"))
    with next(tmp_path.glob("*.log")).open("ab") as file:
        file.write(bytes(4096))
    assert names(predictions.read(tmp_path)[0]) == ["a"]


def test_a_full_disk_is_told_and_the_next_append_begins_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, write = Inbox(tmp_path, "r"), os.write
    inbox.submit([label("a")]).result(10)

    def half(handle: int, data: bytes) -> int:
        write(handle, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Unavailable, match="No space left"):
        inbox.submit([label("b")]).result(10)
    monkeypatch.setattr(os, "write", write)
    inbox.submit([label("c")]).result(10)
    inbox.close()
    assert names(predictions.read(tmp_path)[0]) == ["a", "c"]


def test_commit_moves_everything_once(place: Settings) -> None:
    warehouse = Warehouse(place)
    log(place.inbox, prediction("a"), label("a"))
    still = Inbox(place.inbox, "s")
    still.submit([prediction("b", epoch=3)]).result(10)
    assert names(predictions.everything(place)) == ["a", "a", "b"]
    assert predictions.commit(place, warehouse) == 3
    assert predictions.commit(place, warehouse) == 0
    assert len(list(place.inbox.glob("*.log"))) == 1  # the other one is still written to
    still.submit([prediction("c")]).result(10)
    assert names(predictions.everything(place)) == ["a", "a", "b", "c"]
    assert names(predictions.read(place.inbox)[0]) == ["c"]
    assert predictions.commit(place, warehouse) == 1
    still.close()
    assert predictions.commit(place, warehouse) == 0
    assert not list(place.inbox.glob("*.log"))
    assert [record for record in predictions.committed(place) if record["id"] == "b"] == [
        prediction("b", epoch=3) | {"of": None, "scores": {}}
    ]
    assert names(predictions.committed(place, first_epoch=2)) == ["a", "b"]
    assert [r for r in predictions.committed(place) if r["kind"] == "label"] == [label("a")]


def test_a_log_of_an_older_ct_goes_on_and_is_forgotten_from(place: Settings) -> None:
    """Its table and its inbox know no `scores`; they read as none, and both kinds of file can be rewritten together."""
    warehouse = Warehouse(place)
    old = predictions._table([prediction("old", key="ann"), prediction("kept")]).drop_columns(["scores"])
    warehouse.append(predictions.TABLE, old, attempt="a" * 64)
    log(place.inbox, prediction("waiting"), prediction("new", key="ann", scores={"a": 0.25, "b": 0.75}))
    log(place.inbox, prediction("other", scores={"b": 0.25, "a": 0.75}), replica="s")
    for _ in range(2):
        found = {record["id"]: record["scores"] for record in predictions.everything(place) if "scores" in record}
        assert found.pop("new") == {"a": 0.25, "b": 0.75}
        assert list(found.pop("other")) == ["b", "a"], "the order of the classes is kept"
        assert not any(found.values())
        predictions.commit(place, warehouse)
    assert predictions.forget(place, warehouse, "ann", lambda record: record.get("key") == "ann") == 2
    assert names(predictions.committed(place)) == ["kept", "other", "waiting"]


@pytest.mark.parametrize("before", ["append", "_save", "unlink"])
def test_a_killed_commit_is_finished_by_the_next(place: Settings, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = Warehouse(place)
    log(place.inbox, prediction("a"), label("a"))

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    save = predictions._save
    with monkeypatch.context() as patch:
        if before == "append":
            patch.setattr(Warehouse, "append", die)
        elif before == "_save":
            patch.setattr(
                predictions, "_save", lambda path, value: die() if path.name == "committed.json" else save(path, value)
            )
        else:
            patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            predictions.commit(place, warehouse)
    assert names(predictions.everything(place)) == ["a", "a"]
    log(place.inbox, prediction("b"), replica="s")
    assert names(predictions.everything(place)) == ["a", "a", "b"]
    predictions.commit(place, warehouse)
    assert names(predictions.everything(place)) == names(predictions.committed(place)) == ["a", "a", "b"]


def test_a_damaged_segment_is_kept(place: Settings) -> None:
    log(place.inbox, prediction("a"))
    with next(place.inbox.glob("*.log")).open("ab") as file:
        file.write(b"half a rec")
    assert predictions.commit(place, Warehouse(place)) == 1
    assert not list(place.inbox.glob("*.log"))
    assert len(list(place.inbox.glob("*.torn"))) == 1


_WRITER = """
import sys
from pathlib import Path
from ct.data.predictions import Inbox
inbox = Inbox(Path(sys.argv[1]), sys.argv[2], segment_bytes=20_000)
for at in range(1_000_000):
    inbox.submit([{"kind": "label", "id": f"{sys.argv[2]}-{at}-{part}"} for part in range(3)]).result()
    print(at, flush=True)
"""


def test_writers_killed_at_any_moment_lose_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    for name in ("x", "y", "z"):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(random.Random(name).uniform(0.05, 0.3))
        child.send_signal(signal.SIGKILL)
        told = [0, *(int(line) for line in child.stdout.read().split("\n")[:-1])]
        child.wait()
        acknowledged |= {f"{name}-{at}-{part}" for at in told for part in range(3)}
    found = [record["id"] for record in predictions.read(tmp_path)[0]]
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    assert len(acknowledged) > 30


def test_who_no_longer_waits_for_a_row_stops_neither_it_nor_the_writer(tmp_path: Path) -> None:
    """A client that leaves cancels its wait. The writer went down with it, and nobody was answered any more."""
    inbox = predictions.Inbox(tmp_path / "inbox", "r1")
    waits = [inbox.submit([{"kind": "label", "id": f"l{at}"}]) for at in range(200)]
    for at in range(0, 200, 2):
        waits[at].cancel()
    inbox.submit([{"kind": "label", "id": "last"}]).result(timeout=10)
    inbox.close()
    assert {record["id"] for record in predictions.read(tmp_path / "inbox", {})[0]} == {
        "last",
        *(f"l{at}" for at in range(200)),
    }


def test_what_is_written_soon_is_the_systems_at_once_and_on_disk_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path, "r1")
    inbox.submit([{"kind": "label", "id": "0"}]).result(5)
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(predictions.os, "fsync", lambda handle: (synced.append(handle), sync(handle)))
    some = [inbox.soon([{"kind": "label", "id": str(at)}]) for at in range(1, 30)]
    assert [record["id"] for record in predictions.read(tmp_path)[0]] == [str(at) for at in range(30)]
    for done in some:
        done.result(5)
    assert 1 <= len(synced) < 15  # they share an fsync
    inbox.close()
    with pytest.raises(Unavailable, match="closed"):
        inbox.submit([{"kind": "label", "id": "late"}]).result(5)
    with pytest.raises(Unavailable, match="closed"):
        inbox.soon([{"kind": "label", "id": "late"}]).result(5)


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "next-segment"])
def test_half_a_record_written_soon_is_cut_off_and_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    inbox = Inbox(tmp_path, "r1")
    inbox.submit([{"kind": "label", "id": "0"}]).result(5)
    write = os.write

    def half(handle: int, data: bytes) -> int:
        monkeypatch.setattr(predictions.os, "write", fail)
        return write(handle, data[:10])

    def fail(handle: int, data: bytes) -> int:
        monkeypatch.setattr(predictions.os, "write", write)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.os, "write", half)
    if not cut:
        monkeypatch.setattr(predictions.os, "ftruncate", fail)
    inbox.soon([{"kind": "label", "id": "1"}]).result(5)
    inbox.soon([{"kind": "label", "id": "2"}]).result(5)
    inbox.close()
    assert [record["id"] for record in predictions.read(tmp_path)[0]] == ["0", "1", "2"]
    assert len(list(tmp_path.glob("*.log"))) == (1 if cut else 2)
