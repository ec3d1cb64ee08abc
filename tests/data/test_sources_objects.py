"""An object store as a source: keys, changes, limits. Against moto's S3 API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data.sources import objects
from ct.data.sources.objects import ObjectStore, file_name
from ct.errors import Conflict, InvalidPipeline, InvalidShard, NotFound, Unavailable
from ct.serving.local import free_port
from ct.store import files
from ct.store.files import Entry, Files
from tests.services import S3, s3_server

from .source_worlds import Project, parquet, rows


@pytest.fixture
def bucket(s3: S3) -> Files:
    return Files(s3.new())


@pytest.fixture
def project(bucket: Files, tmp_path: Path) -> Project:
    return Project(tmp_path / "ours", ObjectStore(bucket.uri, settle=0.0))


def test_keys_become_names_that_are_safe_and_differ(project: Project, bucket: Files) -> None:
    keys = ["a.parquet", "2024/01/a.parquet", "2024-01/a.parquet", "2024/ü b.parquet", "x" * 200 + ".parquet"]
    for at, key in enumerate(keys):
        bucket.put(key, parquet(rows([at])))
    for key in ("_SUCCESS", "2024/_temporary/0/a.parquet", ".hidden", "2024/.a.crc"):
        bucket.put(key, b"mark")
    assert len(project.take()) == len(keys)
    assert sorted(project.ids) == list(range(len(keys)))
    names = [name for name, _ in project.shards]
    assert len(set(names)) == len(keys)
    assert "a" in names
    assert project.take() == []


@given(st.lists(st.text(min_size=1, max_size=150), min_size=2, max_size=2, unique=True))
def test_a_name_is_safe_whatever_the_key(keys: list[str]) -> None:
    one, two = map(file_name, keys)
    assert one != two
    for name in (one, two):
        assert name.isascii()
        assert name.isprintable()
        assert Path(name).name == name
        assert not name.startswith((".", "-"))
        assert len(name) <= 100


def test_more_keys_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer of the S3 API lists a thousand keys; here it is seven."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        uri = server.new()
        for at in range(40):
            Files(uri).put(f"part/{at:04d}.csv", b"id\n1\n")
        project = Project(tmp_path / "ours", ObjectStore(uri, settle=0.0))
        assert len(project.taker.pending(project.table)) == 40


def test_an_object_that_is_overwritten_in_the_same_second_by_as_many_bytes(bucket: Files, tmp_path: Path) -> None:
    project = Project(tmp_path / "ours", ObjectStore(bucket.uri))
    for at in range(2):
        bucket.put("a.parquet", parquet(rows([at])))
        project.take()
    assert project.ids == [0, 1]
    assert project.take() == []


def test_an_object_that_is_overwritten_while_it_is_fetched(
    project: Project, bucket: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.parquet", parquet(rows([1])))
    plain = objects.open_input

    def overtaken(address: str) -> Any:
        found = plain(address)
        monkeypatch.setattr(objects, "open_input", plain)
        bucket.put("a.parquet", parquet(rows([2, 3])))
        return found

    monkeypatch.setattr(objects, "open_input", overtaken)
    with pytest.raises((Conflict, InvalidShard)):
        project.take()
    assert project.ids == []
    project.take()
    assert project.ids == [2, 3]


def test_a_stale_listing_misses_nothing_for_good(project: Project, bucket: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a.parquet", parquet(rows([1])))
    bucket.put("b.parquet", parquet(rows([2])))
    plain = Files.list

    def stale(self: Files, prefix: str = "") -> Iterator[Entry]:
        return (entry for entry in plain(self, prefix) if entry.name != "a.parquet")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "list", stale)
        project.take()
    assert project.ids == [2]
    project.take()
    assert project.ids == [2, 1]


def test_an_object_that_is_listed_and_gone(project: Project, bucket: Files) -> None:
    bucket.put("a.parquet", parquet(rows([1])))
    (arrival,) = project.taker.pending(project.table)
    bucket.delete("a.parquet")
    with pytest.raises(NotFound):
        project.taker.take(project.table, arrival)
    assert project.taker.pending(project.table) == ()


def test_an_object_over_the_limit_is_refused_once_and_taken_under_a_higher_one(bucket: Files, tmp_path: Path) -> None:
    bucket.put("a.parquet", parquet(rows([1])))
    bucket.put("big.parquet", parquet(rows(list(range(2, 5000)))))
    project = Project(tmp_path / "ours", ObjectStore(bucket.uri, max_bytes=2000, settle=0.0))
    refused: list[str] = []

    def told(_table: object, arrival: Any) -> None:
        refused.append(arrival.name)

    taker = replace(project.taker, refused=told)
    kinds = {outcome.shard: outcome.kind for outcome in taker.take_new(project.table)}
    assert kinds == {"a": "published", "big": "quarantined"}
    assert list(taker.take_new(project.table)) == []
    assert refused == ["big.parquet"]
    higher = Project(tmp_path / "ours", ObjectStore(bucket.uri, settle=0.0))
    assert [outcome.kind for outcome in higher.take()] == ["published"]
    assert higher.ids == list(range(1, 5000))


def test_an_object_that_grows_over_the_limit_after_the_look_is_not_fetched(bucket: Files, tmp_path: Path) -> None:
    project = Project(tmp_path / "ours", ObjectStore(bucket.uri, max_bytes=2000, settle=0.0))
    bucket.put("a.parquet", parquet(rows([1])))
    (arrival,) = project.taker.pending(project.table)
    bucket.put("a.parquet", parquet(rows(list(range(5000)))))
    with pytest.raises(InvalidShard, match="has over 2,000 bytes"):
        project.taker.take(project.table, arrival)


def test_only_a_bucket_is_an_object_store() -> None:
    for uri in ("https://example.com/x", "s3://key:secret@bucket/x", "/srv/files", "s3://"):
        with pytest.raises(InvalidPipeline, match="no credentials"):
            ObjectStore(uri)


def test_a_store_that_does_not_answer_is_said_and_taken_up_again(
    project: Project, bucket: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.parquet", parquet(rows([1])))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        patch.setattr(files, "DEADLINE_SECONDS", 1.0)
        with pytest.raises(Unavailable):
            project.take()
    project.take()
    assert project.ids == [1]
