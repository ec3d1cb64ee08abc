"""Files on a disk and on an object store: whole or not there, the same names and errors at both."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import InvalidSettings, NotFound, Unavailable
from ct.store import files
from ct.store.artifacts import Artifacts
from ct.store.files import Files, open_input


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(request.getfixturevalue("s3").new() if request.param == "s3" else str(tmp_path / "kept here"))


def test_what_is_put_comes_back(place: Files) -> None:
    address = place.put("a/b.bin", b"one")
    assert address == place.address("a/b.bin")
    place.put("a/b.bin", b"two")
    place.put("a/c.bin", b"")
    assert (place.get("a/b.bin"), place.get("a/c.bin")) == (b"two", b"")
    with open_input(address) as file:
        assert file.read() == b"two"
    assert files.digest(address) == files.digest_once(address) == hashlib.sha256(b"two").hexdigest()
    assert [(entry.name, entry.size) for entry in place.list()] == [("a/b.bin", 3), ("a/c.bin", 0)]
    assert [entry.name for entry in place.list("a")] == ["a/b.bin", "a/c.bin"]
    assert list(place.list("b")) == []


def test_what_is_not_there(place: Files) -> None:
    assert not place.exists("a")
    with pytest.raises(NotFound, match="there is no file"):
        place.get("a")
    with pytest.raises(NotFound):
        open_input(place.address("a"))
    with pytest.raises(NotFound):
        files.digest(place.address("a"))
    place.delete("a")
    place.put("a", b"x")
    assert place.exists("a")
    place.delete("a")
    assert not place.exists("a")


def test_a_draft_is_kept_under_the_name_it_gets(place: Files) -> None:
    with place.draft() as file:
        file.write(b"half ")
        assert list(place.list()) == []
        file.write(b"and half")
        file.name = f"{file.sha256[:8]}.bin"
    assert place.get(file.name) == b"half and half"
    assert file.sha256 == hashlib.sha256(b"half and half").hexdigest()
    assert file.size == 13


def test_a_draft_that_fails_leaves_nothing(place: Files, tmp_path: Path) -> None:
    def fail() -> None:
        with place.draft() as file:
            file.name = "a"
            file.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(place.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_large_file_goes_in_pieces(place: Files) -> None:
    data = os.urandom(1 << 20) * 25
    with place.draft() as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])
        file.name = "large"
    assert files.digest(place.address("large")) == hashlib.sha256(data).hexdigest()


def test_artifacts_lie_at_both_places(place: Files) -> None:
    artifacts = Artifacts(place.uri)
    digest = artifacts.put_set({"a": b"one", "b": b"two"})
    assert Artifacts(place.uri).get_set(digest) == {"a": b"one", "b": b"two"}
    assert artifacts.address(digest).startswith(place.uri)
    assert len(list(place.list())) == 3


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", "http://a/b"])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(InvalidSettings):
        Files(uri).address("a")


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=4))
def test_a_draft_hashes_what_it_holds(data: bytes, cuts: list[int]) -> None:
    sink = pa.BufferOutputStream()
    draft = files.Draft(sink)
    edges = [0, *sorted(cuts), len(data)]
    for start, stop in pairwise(edges):
        draft.write(data[start:stop])
    written = sink.getvalue().to_pybytes()
    assert (draft.size, draft.sha256) == (len(written), hashlib.sha256(written).hexdigest())


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: what is as a full disk, without being root."""
    plain = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, plain[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, plain)
    signal.signal(signal.SIGXFSZ, ignored)


def test_no_space_is_told_and_leaves_nothing(tmp_path: Path, small_files_only: None) -> None:
    place = Files(str(tmp_path / "kept"))
    with pytest.raises(Unavailable, match=r"no space left for .*EFBIG"):
        place.put("a", bytes(1 << 17))
    with pytest.raises(Unavailable, match="no space left"), place.draft() as file:
        file.write(bytes(1 << 17))
    assert not place.exists("a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    place.put("a", b"little")
    assert place.get("a") == b"little"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"ENOTDIR|EEXIST"):
        Files(str(tmp_path / "file")).put("a", b"x")
