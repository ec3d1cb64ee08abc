"""The journal: order, compare-and-set, the hash chain, and several processes at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.clock import TurnableClock
from ct.errors import Conflict, Corrupt
from ct.store.journal import Journal, New


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").new())
    return f"sqlite:///{tmp_path / 'journal.db'}"


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    made = Journal(url, actor="ann")
    yield made
    made.close()


def test_events_come_back_in_order_with_their_stream_versions(journal: Journal) -> None:
    journal.append("a", [New("Made", {"n": 1}), New("Made", {"n": 2})])
    journal.append("b", [New("Made", {"n": 3})])
    journal.append("a", [New("Changed", {"n": 4})], expected=2)
    assert [(e.seq, e.stream, e.version, e.data["n"]) for e in journal.read()] == [
        (1, "a", 1, 1),
        (2, "a", 2, 2),
        (3, "b", 1, 3),
        (4, "a", 3, 4),
    ]
    assert [e.data["n"] for e in journal.read("a", types=["Changed"])] == [4]
    assert [e.data["n"] for e in journal.read(after=3)] == [4]
    assert {e.actor for e in journal.read()} == {"ann"}


def test_a_stale_writer_is_refused_and_nothing_of_its_events_stays(journal: Journal) -> None:
    journal.append("a", [New("Made", {})], expected=0)
    with pytest.raises(Conflict, match="version 1"):
        journal.append("a", [New("Other", {}), New("Other", {})], expected=0)
    assert journal.version("a") == 1


@pytest.mark.parametrize("column", ["data", "type", "stream", "at", "actor", "version"])
def test_any_changed_field_breaks_the_chain(tmp_path: Path, column: str) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    for n in range(5):
        journal.append("a", [New("Made", {"n": n})])
    assert journal.verify() == 5
    with sqlite3.connect(tmp_path / "journal.db") as database:
        value = 9 if column == "version" else "changed"
        database.execute(f"UPDATE ct_events SET {column} = ? WHERE seq = 3", (value,))
    with pytest.raises(Corrupt, match="event 3"):
        journal.verify()


def test_a_removed_event_breaks_the_chain(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    for n in range(3):
        journal.append("a", [New("Made", {"n": n})])
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("DELETE FROM ct_events WHERE seq = 2")
    with pytest.raises(Corrupt, match="event 3"):
        journal.verify()


def test_the_clock_is_an_argument(tmp_path: Path) -> None:
    clock = TurnableClock(datetime(2020, 1, 1, tzinfo=UTC))
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}", clock=clock)
    clock.sleep(60)
    (event,) = journal.append("a", [New("Made", {})])
    assert event.at == datetime(2020, 1, 1, 0, 1, tzinfo=UTC)


def test_four_processes_append_without_losing_or_doubling_an_event(url: str) -> None:
    code = (
        "import sys; from ct.store.journal import Journal, New\n"
        "journal = Journal(sys.argv[1])\n"
        "for n in range(25): journal.append('a', [New('Made', {'by': sys.argv[2], 'n': n})])"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, url, str(i)]) for i in range(4)]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0, 0]
    journal = Journal(url)
    assert journal.verify() == 100
    assert sorted((e.data["by"], e.data["n"]) for e in journal.read("a")) == sorted(
        (str(i), n) for i in range(4) for n in range(25)
    )


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3), max_size=5))
def test_data_comes_back_as_it_went_in(payloads: list[dict[str, object]]) -> None:
    journal = Journal("sqlite://")
    journal.append("a", [New("Made", payload) for payload in payloads]) if payloads else None
    assert [e.data for e in journal.read("a")] == payloads
    assert journal.verify() == len(payloads)
