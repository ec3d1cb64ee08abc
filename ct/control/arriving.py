"""The loop's eyes on the tables' sources: what is new, and taking it. Remembers hashes, and for a while that a distant source had nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ct.control.decide import Arrival
from ct.data.ingest import Outcome
from ct.data.sources.cursor import Taker, source_of
from ct.data.sources.folder import Folder
from ct.errors import CtError
from ct.ids import sha256_file
from ct.pipeline import Table
from ct.roles import Arrival as Item

if TYPE_CHECKING:
    from ct.control.act import Actor

QUIET_SECONDS = 30.0
"""A source that is no folder and had nothing new is asked again after this."""


class Looks:
    """One process's looks at the sources of an actor's tables."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._digests: dict[Path, tuple[tuple[int, int, int], str]] = {}
        self._quiet: dict[str, float] = {}

    def arrivals(self) -> Iterator[Arrival]:
        """What is new, of every table; for a source that cannot be read on, an arrival that carries the fault."""
        for table in self._act.pipeline.all_tables:
            if time.monotonic() < self._quiet.get(table.name, 0.0):
                continue
            source = source_of(table, self._act.settings)
            try:
                found = self.taker.pending(table)
            except CtError as error:
                yield Arrival(table.name, Path(), fault=error)
                continue
            folder = self._act.settings.root / source.path if isinstance(source, Folder) else Path()
            yield from (Arrival(table.name, folder / item.name, item) for item in found)
            if not found and not isinstance(source, Folder):
                self._quiet[table.name] = time.monotonic() + QUIET_SECONDS

    def take(self, arrival: Arrival) -> str:
        """Take an arrival and say what became of it, or raise the fault that it carries."""
        if arrival.fault is not None or arrival.item is None:
            raise arrival.fault or CtError(f"{arrival.path} came from no source")
        outcome = self.taker.take(self._act.table(arrival.table), arrival.item)
        if outcome is None:
            return ""
        why = f": {outcome.reasons[0].found}" if outcome.reasons else ""
        return f"{arrival.table}/{outcome.shard}: {outcome.kind}, {outcome.rows:,} rows{why}"

    @property
    def taker(self) -> Taker:
        """What takes arrivals, alerts their owners and keeps the online store up to date."""
        act = self._act

        def ingest(table: Table, path: Path) -> Outcome:
            origin = table.source.explain() if table.source is not None else f"landing/{table.name}/"
            return act.ingest(table.name, path, origin=origin)

        return Taker(act.settings, act.journal, ingest, self._refused, self._digest)

    def _refused(self, table: Table, item: Item) -> None:
        self._act.alert("WARN", f"{item.name} of {table.name} was not fetched", detail=item.refused, owner=table.owner)

    def _digest(self, path: Path) -> str:
        """SHA-256 of a file, remembered while its size, time of change and place stay the same."""
        stat = path.stat()
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._digests.get(path)
        if known is None or known[0] != key:
            self._digests[path] = known = (key, sha256_file(path))
        return known[1]
