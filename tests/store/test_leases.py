"""Leases: one holder at a time, a dead one is replaced at once and a silent one after a while, and a former one can write nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ct.errors import Conflict
from ct.store import leases
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


HOLDER = """
import sys, time
from ct.errors import Conflict
from ct.store import leases
from ct.store.journal import Journal, New
journal = Journal(sys.argv[1], actor="first")
with leases.held(journal, "work", beat=0.05) as lease:
    print(lease.epoch, flush=True)
    sys.stdin.readline()
    try:
        journal.append("made", [New("Done", {"by": "first"})], guard=lease)
        print("written", flush=True)
    except Conflict as error:
        print(error.found, flush=True)
"""


@pytest.fixture
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease and, told by a line, writes."""
    command = [sys.executable, "-c", HOLDER, url]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    yield child
    child.send_signal(signal.SIGCONT)
    child.kill()
    child.wait()


def told(child: subprocess.Popen[str]) -> str:
    """Let the other process write, and return what it says."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_each_taking_has_a_higher_epoch(journal: Journal) -> None:
    for epoch in (1, 2, 3):
        with leases.held(journal, "work") as lease:
            assert lease.epoch == epoch
            lease.check()
        with pytest.raises(Conflict, match="taken over"):
            lease.check()
    with leases.held(journal, "other") as lease:
        assert lease.epoch == 1


def test_a_living_holder_is_left_alone(journal: Journal, holder: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(leases.Held, match=f"process {holder.pid} on"), leases.held(journal, "work", ttl=60):
        pass
    assert time.monotonic() - begun < 30, "its next beat answers"
    assert told(holder) == "written"


def test_a_dead_holder_of_this_machine_is_replaced_at_once(journal: Journal, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    begun = time.monotonic()
    with leases.held(journal, "work", ttl=600) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - begun < 60


def test_a_stopped_holder_is_fenced_when_it_wakes(journal: Journal, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with leases.held(journal, "work", ttl=1.0) as lease:
        assert time.monotonic() - begun >= 1.0, "it was given its time"
        assert lease.epoch == 2
        holder.send_signal(signal.SIGCONT)
        assert "was taken over: epoch 1 has passed" in told(holder)
        assert journal.version("made") == 0
        lease.check()  # the other one's beats and its giving back do not touch ours
        holder.wait()
        lease.check()
        journal.append("made", [New("Done", {"by": "second"})], guard=lease)
    assert [event.data["by"] for event in journal.read("made")] == ["second"]


def test_a_stale_guard_undoes_the_whole_append(journal: Journal) -> None:
    with leases.held(journal, "work") as first:
        pass
    with leases.held(journal, "work"):
        with pytest.raises(Conflict, match="nothing was written"):
            journal.append("made", [New("One", {}), New("Two", {})], guard=first)
        assert journal.version("made") == 0
    journal.verify()


def test_of_many_who_take_over_at_once_one_holds(url: str, journal: Journal) -> None:
    with leases.held(journal, "work"):
        pass
    code = (
        "import sys, time; from ct.store import leases; from ct.store.journal import Journal\n"
        "try:\n"
        "    with leases.held(Journal(sys.argv[1]), 'work', ttl=5, beat=0.05) as lease: print(lease.epoch); time.sleep(3)\n"
        "except leases.Held: print('held')\n"
    )
    begun = [subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate()[0].strip() for child in begun]
    epochs = [text for text in said if text != "held"]
    assert len(set(epochs)) == len(epochs), "no epoch twice"
    assert "2" in epochs


def test_a_reused_process_number_is_not_the_holder(journal: Journal) -> None:
    with leases.held(journal, "work", beat=60) as lease:
        assert not leases._dead(leases._me())
        other = leases._me().replace(f'"{leases._born(os.getpid())}"', '"1"')
        with journal.writing() as connection:
            connection.execute(sa.text("UPDATE ct_leases SET holder = :holder"), {"holder": other})
        assert leases.take(journal, "work", ttl=600).epoch == lease.epoch + 1


def test_a_clock_that_jumps_changes_nothing(
    journal: Journal, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    with pytest.raises(leases.Held), leases.held(journal, "work", ttl=60):
        pass


def test_a_process_of_another_container_is_not_taken_for_dead(journal: Journal) -> None:
    """Containers may share the machine's name and its start; a process number of one says nothing in the other."""
    with leases.held(journal, "work", beat=0.1):
        other = leases._me().replace("pid:[", "pid:[9").replace(f'"{leases._born(os.getpid())}"', '"1"')
        with journal.writing() as connection:
            connection.execute(sa.text("UPDATE ct_leases SET holder = :holder"), {"holder": other})
        with pytest.raises(leases.Held):
            leases.take(journal, "work", ttl=60)
