"""Artifacts: content addresses, atomic sets, and bytes that changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ct.errors import Corrupt, NotFound
from ct.store.artifacts import Artifacts


def test_the_same_bytes_are_stored_once_and_come_back(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    first, second = artifacts.put(b"weights"), artifacts.put(b"weights")
    assert first == second
    assert artifacts.get(first) == b"weights"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    digest = artifacts.put_set({"a": b"one", "b": b"two"})
    assert artifacts.get_set(digest) == {"a": b"one", "b": b"two"}
    victim = Path(artifacts.address(artifacts.manifest(digest)["b"]))
    victim.write_bytes(b"twO")
    with pytest.raises(Corrupt, match="has the hash"):
        artifacts.get_set(digest)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/x"])
def test_what_is_no_digest_is_never_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        Artifacts(tmp_path).address(name)


def test_an_unknown_digest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not in"):
        Artifacts(tmp_path).get("0" * 64)
