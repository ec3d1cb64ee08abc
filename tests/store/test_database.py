"""A database that is away, restarts, is busy or full: told in our words, without its password, and no event twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ct.errors import InvalidSettings, Unavailable
from ct.serving.local import free_port
from ct.store import database
from ct.store import journal as module
from ct.store.journal import Journal, New

from ..services import Postgres, postgres_server


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A server that may be stopped without harm to other tests."""
    with postgres_server() as server:
        yield server


def test_an_append_waits_for_a_server_that_restarts(own_server: Postgres) -> None:
    journal = Journal(own_server.new())
    journal.append("a", [New("Made", {"n": 1})])
    own_server.stop("immediate")
    starting = threading.Timer(0.5, own_server.start)
    starting.start()
    journal.append("a", [New("Made", {"n": 2})], expected=1)
    starting.join()
    assert [event.data["n"] for event in journal.read("a")] == [1, 2]
    assert journal.verify() == 2
    journal.close()


@pytest.mark.parametrize("done", [True, False])
def test_a_lost_answer_to_a_commit_is_looked_up(own_server: Postgres, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    journal = Journal(own_server.new())
    commit = sa.engine.default.DefaultDialect.do_commit
    lost: list[str] = []

    def lose(self: object, connection: object) -> None:
        if lost:
            commit(self, connection)  # type: ignore[arg-type]
            return
        lost.append("once")
        if done:
            commit(self, connection)  # type: ignore[arg-type]
        raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(journal._engine.dialect, "do_commit", lose.__get__(journal._engine.dialect))
    (event,) = journal.append("a", [New("Made", {})])
    assert lost == ["once"]
    assert [found.hash for found in journal.read()] == [event.hash]
    assert journal.verify() == 1
    journal.close()


def test_a_server_that_is_away_is_told_without_the_password(own_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", 0.5)
    journal = Journal(own_server.new())
    own_server.stop("immediate")
    try:
        for call in (journal.head, lambda: journal.append("a", [New("Made", {})]), lambda: list(journal.read())):
            with pytest.raises(Unavailable, match=r"postgresql.*127\.0\.0\.1") as found:
                call()
            assert "secret-of-the-tests" not in str(found.value)
            assert found.value.__cause__ is None
    finally:
        own_server.start()
    assert journal.head() == 0
    journal.close()


def test_a_server_that_never_was_is_told() -> None:
    with pytest.raises(Unavailable, match=r"ann:\*\*\*@127.0.0.1"):
        Journal(f"postgresql://ann:hidden@127.0.0.1:{free_port()}/db")


def test_a_wrong_password_is_told(own_server: Postgres) -> None:
    wrong = own_server.new().replace("secret-of-the-tests", "wrong-one")
    with pytest.raises(Unavailable, match="password authentication failed") as found:
        Journal(wrong)
    assert "wrong-one" not in str(found.value)


def test_a_busy_sqlite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    holder = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="database is locked"):
        journal.append("a", [New("Made", {})])
    holder.execute("ROLLBACK")
    holder.close()
    journal.append("a", [New("Made", {})], expected=0)
    assert journal.verify() == 1


def test_a_full_sqlite_is_told_and_goes_on_later(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    journal.append("a", [New("Made", {})])
    limit = [1]
    sa.event.listen(journal._engine, "checkout", lambda connection, *_: connection.execute(f"PRAGMA max_page_count={limit[0]}"))
    with pytest.raises(Unavailable, match="full"):
        journal.append("a", [New("Made", {"text": "x" * 100_000})], expected=1)
    limit[0] = 10_000
    journal.append("a", [New("Made", {"text": "x" * 100_000})], expected=1)
    assert journal.verify() == 2


@pytest.mark.parametrize("url", ["mysql://host/db", "no url at all"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(InvalidSettings):
        Journal(url)


def test_the_driver_is_named(tmp_path: Path) -> None:
    assert database.reach("postgresql://ann@host/db").startswith("postgresql+psycopg://ann@host/db?")
    assert "connect_timeout=9" in database.reach("postgresql+psycopg://ann@host/db?connect_timeout=9")
    assert database.masked("postgresql://ann:x@host/db?password=x") == "postgresql://ann:***@host/db"


def test_a_server_that_vanished_is_not_waited_for_for_hours() -> None:
    """The kernel's own pace is two hours until the first question whether the other end still lives."""
    reached = database.reach("postgresql://ann@host/db")
    wanted = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    assert all(f"{name}={value}" in reached for name, value in wanted.items())
