"""PostgreSQL that is away or restarts during an ingest (the data's side of F28): told without a trace, resumed in order, nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ct.data import iceberg
from ct.errors import Unavailable
from ct.store import journal

from ..data.conftest import Place, sales
from ..services import Postgres, postgres_server
from .sold import rows, state


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def place(own_server: Postgres, tmp_path: Path) -> Iterator[Place]:
    made = Place.at(tmp_path / "project", database_url=own_server.new())
    yield made
    made.journal.close()


def test_a_database_that_restarts_during_an_ingest_is_waited_for(
    own_server: Postgres, place: Place, make_place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_place("plain")
    file = place.file(sales(1), "sales-1.parquet")
    stage = place.warehouse.stage
    started: list[threading.Thread] = []

    def crash(*args, **kwargs):
        staged = stage(*args, **kwargs)
        if not started:
            own_server.stop("immediate")
            started.append(threading.Timer(1.0, own_server.start))
            started[0].start()
        return staged

    monkeypatch.setattr(place.warehouse, "stage", crash)
    assert place.ingest(file).kind == "published"
    started[0].join()
    plain.ingest(file)
    assert state(place) == state(plain)
    place.journal.verify()


def test_a_database_that_stays_away_is_told_and_the_ingest_resumes(
    own_server: Postgres, place: Place, make_place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(iceberg, "LOST_SECONDS", 0.5)
    plain = make_place("plain")
    for project in (place, plain):
        project.ingest(project.file(sales(1), "sales-1.parquet"))
    own_server.stop("immediate")
    try:
        with pytest.raises(Unavailable, match="see that it runs") as found:
            place.ingest(place.file(sales(2), "sales-2.parquet"))
        assert "secret-of-the-tests" not in str(found.value)
    finally:
        own_server.start()
    assert len(rows(place)) == 300
    for project in (place, plain):
        assert project.ingest(project.file(sales(2), "sales-2.parquet")).kind == "published"
    assert state(place) == state(plain)
