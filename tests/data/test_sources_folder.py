"""A folder as a source: which files are ready, and what makes one new."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ct.data.sources import folder as module
from ct.data.sources.folder import Folder
from ct.errors import InvalidRequest, InvalidShard, Unavailable
from ct.ids import sha256_file

from .source_worlds import Project, parquet, rows


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    made = tmp_path / "ours" / "landing" / "orders"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def project(landing: Path, tmp_path: Path) -> Project:
    return Project(tmp_path / "ours", None)


def names(project: Project) -> list[str]:
    return [arrival.name for arrival in project.taker.pending(project.table)]


def test_a_table_without_a_source_has_its_landing_folder(project: Project, landing: Path) -> None:
    (landing / "b.parquet").write_bytes(parquet(rows([2])))
    (landing / "a.parquet").write_bytes(parquet(rows([1])))
    assert names(project) == ["a.parquet", "b.parquet"]
    project.take()
    assert project.ids == [1, 2]


def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert names(Project(tmp_path / "ours", Folder("nowhere"))) == []


def test_a_folder_that_cannot_be_listed_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(Unavailable, match="cannot be listed: Permission denied"):
        project.take()


def test_what_is_not_ready_or_no_plain_file_is_left(project: Project, landing: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.parquet"
    secret.write_bytes(parquet(rows([1])))
    (landing / "link.parquet").symlink_to(secret)
    (landing / "folder.parquet").mkdir()
    os.mkfifo(landing / "pipe.parquet")
    for name in (".hidden.parquet", "a.parquet.part", "a.parquet.tmp"):
        (landing / name).write_bytes(b"half")
    assert names(project) == []
    assert project.take() == []


def leases(path: Path) -> bool:
    """Does the system tell who has a file open? macOS and some file systems do not."""
    path.touch()
    with path.open("rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except (AttributeError, OSError):
            return False
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def test_a_file_that_is_open_for_writing_is_left(project: Project, landing: Path, tmp_path: Path) -> None:
    if not leases(tmp_path / "probe"):
        pytest.skip("no leases on this file system")
    path = landing / "a.parquet"
    with path.open("wb") as writer:
        writer.write(parquet(rows([1])))
        writer.flush()
        assert names(project) == []
    assert names(project) == ["a.parquet"]
    with path.open("rb"):  # a reader is no writer
        assert names(project) == ["a.parquet"]


def test_a_file_that_grows_between_two_looks_is_left(project: Project, landing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = landing / "a.parquet", parquet(rows([1]))
    path.write_bytes(whole[:100])
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", lambda _: path.write_bytes(whole))
        assert names(project) == []
    project.take()
    assert project.ids == [1]


def test_a_file_that_is_replaced_between_two_looks_is_left(
    project: Project, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of the same size and time of change."""
    path, other = landing / "a.parquet", landing / ".b"
    path.write_bytes(parquet(rows([1])))
    other.write_bytes(parquet(rows([2])))
    for one in (path, other):
        os.utime(one, (5, 5))
    assert path.stat().st_size == other.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", lambda _: os.replace(other, path))
        assert names(project) == []
    project.take()
    assert project.ids == [2]


@pytest.mark.parametrize("moment", [0, 1, 4_000_000_000])
def test_no_clock_is_trusted(project: Project, landing: Path, moment: int) -> None:
    (landing / "a.parquet").write_bytes(parquet(rows([1])))
    os.utime(landing / "a.parquet", (moment, moment))
    project.take()
    assert project.ids == [1]


def test_new_bytes_are_new_and_a_new_name_is_not(project: Project, landing: Path) -> None:
    path = landing / "a.parquet"
    path.write_bytes(parquet(rows([1])))
    project.take()
    os.rename(path, landing / "b.parquet")
    assert names(project) == []
    (landing / "b.parquet").write_bytes(parquet(rows([2, 3])))
    assert names(project) == ["b.parquet"]
    project.take()
    assert project.ids == [1, 2, 3]


def test_a_file_that_goes_or_turns_into_a_link_before_it_is_taken(project: Project, landing: Path, tmp_path: Path) -> None:
    path = landing / "a.parquet"
    path.write_bytes(parquet(rows([1])))
    (arrival,) = project.taker.pending(project.table)
    os.rename(path, tmp_path / "away.parquet")
    with pytest.raises(InvalidShard, match="is gone"):
        project.taker.take(project.table, arrival)
    path.symlink_to(tmp_path / "away.parquet")
    with pytest.raises(InvalidShard, match="is gone"):
        project.taker.take(project.table, arrival)
    assert project.ids == []


def test_a_folder_has_no_positions(project: Project) -> None:
    with pytest.raises(InvalidRequest, match="has no position '7'"):
        project.taker.skip(project.table, "7")
    assert project.journal.head() == 0


def test_a_file_that_cannot_be_read_is_refused_once_and_keeps_no_other_back(project: Project, landing: Path) -> None:
    for at, name in enumerate("ab"):
        (landing / f"{name}.parquet").write_bytes(parquet(rows([at])))

    def digest(path: Path) -> str:
        if path.name == "a.parquet":
            raise PermissionError(13, "Permission denied")
        return sha256_file(path)

    refused: list[str] = []
    taker = replace(project.taker, digest=digest, refused=lambda _table, arrival: refused.append(arrival.refused))
    assert [outcome.kind for outcome in taker.take_new(project.table)] == ["quarantined", "published"]
    assert list(taker.take_new(project.table)) == []
    assert refused == ["it cannot be read: Permission denied"]
    project.take()  # by one that may read it
    assert project.ids == [1, 0]
