"""Leases: who carries a piece of work out now. Each taking has a higher epoch, and a holder whose epoch has passed can write nothing more.

A lease is a row beside the journal. Its holder beats; another one takes it after the time it has itself measured without a beat, or at
once from a dead process of this machine. No two clocks are compared. What protects the data is not that time: every write of the
holder checks its epoch in the transaction that writes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from ct.errors import Conflict, Unavailable
from ct.ids import canonical
from ct.store.journal import Journal

TTL_SECONDS = 30.0
"""So long another one must see no beat before it takes over."""
BEAT_SECONDS = 2.0

_META = sa.MetaData()
_LEASES = sa.Table(
    "ct_leases",
    _META,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(300), nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
)


class Held(Conflict):
    """Another process, which is alive, carries the work out."""


@dataclass(frozen=True)
class Lease:
    """A lease as it was taken: `epoch` counts its takings from 1."""

    name: str
    epoch: int
    journal: Journal = field(repr=False, compare=False)

    def __call__(self, connection: sa.Connection) -> None:
        """The guard of `Journal.append`: raises Conflict when another one has taken the lease since. Holds the row until the transaction ends."""
        query = sa.select(_LEASES.c.epoch, _LEASES.c.holder).where(_LEASES.c.name == self.name).with_for_update(read=True)
        found = connection.execute(query).first()
        if found is None or found.epoch != self.epoch or not found.holder:
            by = f"epoch {found.epoch}" if found else "nobody"
            raise Conflict(
                f"{self.name} was taken over: epoch {self.epoch} has passed ({by} now)",
                "to be the one who carries it out",
                "nothing was written; the one who took it over ends it",
            )

    def check(self) -> None:
        """Raises Conflict when another one has taken the lease since."""
        with self.journal.reading() as connection:
            self(connection)


@contextmanager
def held(journal: Journal, name: str, *, ttl: float | None = None, beat: float | None = None) -> Iterator[Lease]:
    """Take the lease `name`, beat while the block lasts, and give it back.

    Raises Held when another one beats, after waiting for its next beat; a silent one is waited for `ttl` seconds of this process's
    own clock and taken over then. TTL_SECONDS and BEAT_SECONDS where nothing is said.
    """
    lease = take(journal, name, ttl=TTL_SECONDS if ttl is None else ttl)
    ended = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(lease, BEAT_SECONDS if beat is None else beat, ended), name=f"lease {name}", daemon=True
    )
    beating.start()
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        _release(lease)


def take(journal: Journal, name: str, *, ttl: float) -> Lease:
    """Take the lease once, without beating. Raises as `held` does."""
    _set_up(journal)
    seen, since = _look(journal, name), time.monotonic()
    while True:
        if seen is None or not seen.holder or _dead(seen.holder) or time.monotonic() - since >= ttl:
            epoch = _swap(journal, name, seen)
            if epoch:
                return Lease(name, epoch, journal)
        else:
            time.sleep(min(0.2, ttl / 5))
        now = _look(journal, name)
        if now != seen:
            if now is not None and now.holder:
                raise Held(f"{name} is carried out by {_said(now.holder)}", "one at a time", "wait until it ends, or end it")
            seen, since = now, time.monotonic()


@dataclass(frozen=True)
class _Row:
    epoch: int
    holder: str
    beat: int


def _set_up(journal: Journal) -> None:
    with journal.writing() as connection:
        _META.create_all(connection)


def _look(journal: Journal, name: str) -> _Row | None:
    with journal.reading() as connection:
        found = connection.execute(sa.select(_LEASES).where(_LEASES.c.name == name)).first()
    return None if found is None else _Row(found.epoch, found.holder, found.beat)


def _swap(journal: Journal, name: str, seen: _Row | None) -> int:
    """The new epoch, if the row is still as it was seen; else 0."""
    with journal.writing() as connection:
        if seen is None:
            if connection.execute(sa.select(_LEASES.c.epoch).where(_LEASES.c.name == name)).first() is not None:
                return 0
            connection.execute(_LEASES.insert().values(name=name, epoch=1, holder=_me(), beat=0))
            return 1
        now = (
            _LEASES.c.name == name,
            _LEASES.c.epoch == seen.epoch,
            _LEASES.c.holder == seen.holder,
            _LEASES.c.beat == seen.beat,
        )
        done = connection.execute(_LEASES.update().where(*now).values(epoch=seen.epoch + 1, holder=_me(), beat=0))
        return seen.epoch + 1 if done.rowcount else 0


def _beat(lease: Lease, every: float, ended: threading.Event) -> None:
    while not ended.wait(every):
        try:
            with lease.journal.writing() as connection:
                mine = (_LEASES.c.name == lease.name, _LEASES.c.epoch == lease.epoch)
                if not connection.execute(_LEASES.update().where(*mine).values(beat=_LEASES.c.beat + 1)).rowcount:
                    return
        except Unavailable:  # a database that is away can be written by nobody else either
            continue


def _release(lease: Lease) -> None:
    try:
        with lease.journal.writing() as connection:
            mine = (_LEASES.c.name == lease.name, _LEASES.c.epoch == lease.epoch)
            connection.execute(_LEASES.update().where(*mine).values(holder=""))
    except Unavailable:  # this process will be dead soon, or silent
        return


def _me() -> str:
    pid = os.getpid()
    return canonical([socket.gethostname()[:100], _boot(), pid, _born(pid)])


def _dead(holder: str) -> bool:
    """Is the holder a process of this machine, since its last start, that is no more?"""
    host, boot, pid, born = json.loads(holder)
    return host == socket.gethostname()[:100] and boot == _boot() and bool(boot) and _born(pid) != born


def _said(holder: str) -> str:
    host, _, pid, _ = json.loads(holder)
    return f"process {pid} on {host}"


@cache
def _boot() -> str:
    """Names this start of this machine, and among whose processes this one counts; empty where it does not say.

    Containers share the machine's start, and often its name, but not the numbers of processes.
    """
    file, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{file.read_text().strip()} {space.readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began; empty for one that is no more."""
    file = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").is_file():
        try:
            after = file.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if after[0] in "ZX" else after[19]
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
