"""An object store that loses answers, refuses, stalls and cuts (F5, F6): waited for up to a deadline, then told; never a second version."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ct.data import catalog, shards
from ct.errors import Unavailable
from ct.store import files
from ct.store.files import Files

from ..data.conftest import Place, sales
from ..services import S3
from .proxy import Proxy, proxied
from .sold import built, contents, rows, state


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The S3 API behind a proxy, and little patience."""
    monkeypatch.setattr(files, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(files, "TRIES", 1)
    monkeypatch.setattr(files, "DEADLINE_SECONDS", 20.0)
    with proxied(s3.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


@pytest.fixture
def place(proxy: Proxy, s3: S3, tmp_path) -> Iterator[Place]:
    made = Place.at(tmp_path / "project", storage=s3.new())
    yield made
    made.journal.close()


@pytest.mark.parametrize("kind", ["lose", "refuse", "stall"])
@pytest.mark.parametrize("method", ["PUT", "GET|HEAD"])
def test_a_request_that_fails_is_made_again(proxy: Proxy, s3: S3, kind: str, method: str) -> None:
    place = Files(s3.new())
    if method != "PUT":
        place.put("a", b"bytes")
    times = 1 if kind == "stall" else 3  # the client notices a stalled upload after eight seconds at the earliest
    proxy.hurt(kind, method, times=times)
    if method == "PUT":
        place.put("a", b"bytes")
    assert place.get("a") == b"bytes"
    assert proxy.hurts(kind) == times
    assert [entry.name for entry in place.list()] == ["a"]


def test_an_answer_that_is_cut_is_no_answer(proxy: Proxy, s3: S3) -> None:
    place = Files(s3.new())
    place.put("a", b"bytes" * 1000)
    proxy.hurt("cut", "GET", times=2)
    assert place.get("a") == b"bytes" * 1000
    assert proxy.hurts("cut") == 2


@pytest.mark.parametrize("kind", ["refuse", "stall", "lose"])
def test_a_store_that_stays_away_is_told_in_time(proxy: Proxy, s3: S3, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    place = Files(s3.new())
    monkeypatch.setattr(files, "DEADLINE_SECONDS", 0.5)
    proxy.hurt(kind, "PUT|GET|HEAD|POST|DELETE")
    calls = [lambda: place.get("a"), lambda: place.exists("a"), lambda: list(place.list())]
    if kind != "stall":  # the client notices a stalled upload after eight seconds at the earliest
        calls.append(lambda: place.put("a", b"x"))
    for call in calls:
        with pytest.raises(Unavailable, match="an object store that answers"):
            call()
    proxy.heal()
    assert not place.exists("b")


def test_what_will_never_be_answered_is_asked_once(proxy: Proxy) -> None:
    with pytest.raises(Unavailable, match=r"NO_SUCH_BUCKET|NoSuchBucket|bucket"):
        Files("s3://no-such-bucket/x").put("a", b"x")
    assert len(proxy.seen) <= 3


@pytest.mark.parametrize("part", ["/shards/", "/metadata/", "/artifacts/"])
def test_a_lost_answer_to_a_put_makes_no_second_version(place: Place, proxy: Proxy, make_place, part: str) -> None:
    plain = make_place("plain")
    file = place.file(sales(1), "sales-1.parquet")
    assert plain.ingest(file).kind == "published"
    proxy.hurt("lose", "PUT", part, times=2)
    assert place.ingest(file).kind == "published"
    assert proxy.hurts("lose") == 2
    assert place.ingest(file).kind == "duplicate"
    assert state(place) == state(plain)
    assert len(place.warehouse.attempts("sales")) == 1


def test_a_storm_of_refusals_is_ridden_out(place: Place, proxy: Proxy, make_place, monkeypatch) -> None:
    """Every eighth request is refused, from the first file to the features; what comes out is the same."""
    monkeypatch.setattr(files, "TRIES", 3)
    plain, count = make_place("plain"), [0]

    def storm(method: str, path: str) -> str:
        count[0] += 1
        return "refuse" if count[0] % 8 == 0 else ""

    proxy.fault = storm
    for project in (place, plain):
        assert project.ingest(project.file(sales(1), "sales-1.parquet")).kind == "published"
    assert proxy.hurts("refuse") > 3
    assert state(place) == state(plain)
    assert contents(built(place)) == contents(built(plain))


def test_reads_do_not_depend_on_listing(place: Place, proxy: Proxy) -> None:
    """A listing that is late shows nothing: a file is found by its name, and ingesting goes on."""
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    proxy.seen.clear()
    place.ingest(place.file(sales(2), "sales-2.parquet"))
    assert len(rows(place)) == 600
    assert not [path for method, path, _ in proxy.seen if method == "GET" and "list-type" in path]


def test_a_store_that_fails_during_an_ingest_leaves_what_the_next_one_finishes(
    place: Place, proxy: Proxy, make_place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ct.data import iceberg

    plain = make_place("plain")
    file = place.file(sales(1), "sales-1.parquet")
    plain.ingest(file)
    with monkeypatch.context() as patch:
        patch.setattr(files, "DEADLINE_SECONDS", 0.5)
        patch.setattr(iceberg, "LOST_SECONDS", 0.5)
        proxy.hurt("refuse", "PUT", "/metadata/")
        with pytest.raises(Unavailable):
            place.ingest(file)
    assert place.events() == []
    assert rows(place) == []
    proxy.heal()
    assert place.ingest(file).kind == "published"
    assert state(place) == state(plain)


def test_rows_that_do_not_come_are_not_called_damaged(place: Place, proxy: Proxy) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    (shard,) = catalog.published(place.journal, "sales")
    with shards.opened(shard) as reader:
        proxy.hurt("refuse", "GET", "/shards/")
        with pytest.raises(Unavailable, match="an object store that answers"):
            reader.read()
        proxy.heal()
        assert reader.read().num_rows == 300
