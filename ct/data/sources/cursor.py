"""How far each table's source was read, as a fold over the journal, and taking what is new: fetch, ingest, advance. Killed anywhere, it is repeated.

A shard is published before the cursor moves; what was published already, ingest knows by its bytes. So nothing is missed or doubled.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ct.data import catalog
from ct.data.checks import Reason
from ct.data.ingest import Outcome
from ct.data.sources.folder import Folder
from ct.errors import Conflict
from ct.ids import sha256_file
from ct.pipeline import Table
from ct.roles import Arrival, Cursor, Source
from ct.settings import Settings
from ct.store.journal import Journal, New

STARTED, ADVANCED = "SourceStarted", "SourceAdvanced"


def stream(table: str) -> str:
    """The journal stream of a table's source."""
    return f"source/{table}"


def source_of(table: Table, settings: Settings) -> Source:
    """The declared source, else the table's folder below the landing folder."""
    return table.source or Folder(str(settings.landing / table.name))


def position(journal: Journal, table: str) -> dict[str, Any] | None:
    """What was taken last from a table's source: {source, position, name, outcome, at}, with the number of `taken` arrivals; None for nothing."""
    events = [event for event in journal.read(stream(table), types=[ADVANCED])]
    if not events:
        return None
    last = events[-1].data
    return {key: last[key] for key in ("source", "position", "name", "outcome")} | {
        "at": events[-1].at.isoformat(),
        "taken": len(events),
    }


def cursor(table: Table, *, settings: Settings, journal: Journal, digest: Callable[[Path], str] = sha256_file) -> Cursor:
    """How far the table's source was read. `digest` may remember hashes of files. A source of another kind begins anew."""
    kind = type(source_of(table, settings)).__name__
    now = Cursor(settings.root.resolve(), digest, seen=catalog.seen(journal, table.name))
    taken: dict[str, str] = {}
    for event in journal.read(stream(table.name)):
        data = event.data
        if data["kind"] != kind:
            continue
        if event.type == STARTED:
            now = replace(now, started=data["position"])
        elif data["key"]:
            taken[data["key"]] = data["position"]
        else:
            now = replace(now, position=data["position"])
    return replace(now, taken=taken)


@dataclass(frozen=True)
class Taker:
    """Takes arrivals of one project: `ingest` publishes or quarantines a file of a table, `refused` is told of what is not even fetched."""

    settings: Settings
    journal: Journal
    ingest: Callable[[Table, Path], Outcome]
    refused: Callable[[Table, Arrival], None] = lambda _table, _arrival: None
    digest: Callable[[Path], str] = sha256_file

    def pending(self, table: Table) -> tuple[Arrival, ...]:
        """What the table's source has that was not taken. Raises a CtError when it cannot be read on."""
        return source_of(table, self.settings).pending(self._cursor(table))

    def take(self, table: Table, arrival: Arrival) -> Outcome | None:
        """Fetch, ingest, advance the cursor. None when somebody else took it meanwhile.

        Raises what fetching and ingesting raise; the cursor stays then.
        """
        source, name = source_of(table, self.settings), stream(table.name)
        with _turn(self.settings.home / "incoming" / ".fetched" / table.name) as folder:
            version = self.journal.version(name)
            now = self._cursor(table)
            if now.taken.get(arrival.key) == arrival.position if arrival.key else now.position != arrival.after:
                return None
            about = {
                "kind": type(source).__name__,
                "source": source.explain(),
                "position": arrival.position,
                "key": arrival.key,
            }
            if not arrival.key and not arrival.after and not now.started:
                # What the first shard holds is settled before anything is published, though the source may move on.
                try:
                    version = self.journal.append(name, [New(STARTED, about)], expected=version)[-1].version
                except Conflict:
                    return None
            outcome = (
                self._refuse(table, arrival) if arrival.refused else self.ingest(table, source.fetch(arrival, now, folder))
            )
            done = New(ADVANCED, {**about, "name": arrival.name, "shard": outcome.sha256, "outcome": outcome.kind})
            # An ordered cursor that another machine has moved stays as it is: the next look goes on from there, and ingest knows these
            # bytes. The keys of a source without an order do not get in each other's way.
            with suppress(Conflict):
                self.journal.append(name, [done], expected=None if arrival.key else version)
            return outcome

    def take_new(
        self, table: Table, *, limit: int | None = None, say: Callable[[str], None] = lambda _: None
    ) -> Iterator[Outcome]:
        """Take all that is new, `limit` arrivals at most. Raises as `pending` and `take` do, after what came before was taken."""
        done: set[tuple[str, str]] = set()
        while limit is None or len(done) < limit:
            new = [arrival for arrival in self.pending(table) if (arrival.key, arrival.position) not in done]
            if not new:
                return
            for arrival in new[: None if limit is None else limit - len(done)]:
                say(arrival.name)
                done.add((arrival.key, arrival.position))
                if outcome := self.take(table, arrival):
                    yield outcome

    def locate(self, table: Table, text: str) -> str:
        """The position that a person calls `text`. Raises InvalidRequest where the source has none."""
        return source_of(table, self.settings).locate(text, self._cursor(table))

    def skip(self, table: Table, text: str) -> str:
        """Set the cursor to the snapshot or version that a person names: it and what came before count as taken. Returns the position."""
        source, name = source_of(table, self.settings), stream(table.name)
        version = self.journal.version(name)
        place = self.locate(table, text)
        about = {"kind": type(source).__name__, "source": source.explain(), "position": place, "key": ""}
        done = New(ADVANCED, {**about, "name": text, "shard": "", "outcome": "passed over by hand"})
        self.journal.append(name, [done], expected=version)
        return place

    def _refuse(self, table: Table, arrival: Arrival) -> Outcome:
        self.refused(table, arrival)
        return Outcome(
            "quarantined", table.name, Path(arrival.name).stem, "", 0, reasons=(Reason("source", arrival.refused, 0),)
        )

    def _cursor(self, table: Table) -> Cursor:
        return cursor(table, settings=self.settings, journal=self.journal, digest=self.digest)


@contextmanager
def _turn(folder: Path) -> Iterator[Path]:
    """An empty folder for what is fetched; one arrival of a table at a time on this machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)  # a killed process may have left something
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
