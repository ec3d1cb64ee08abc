"""The online store of a project and its published shards: filling it, and how new what it holds is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ct.control.place import Place
from ct.data import catalog
from ct.features import online
from ct.features.transform import lookups_of

Step = Callable[[str], None]
KEPT_US = 31 * 86_400_000_000


def materialize(place: Place, *, since: int | None = None, on_step: Step = lambda _: None) -> int:
    """Bring the online store to what has been published, for requests from `since` on (the newest shard's beginning by default).

    Returns the rows stored. What no request from then on, or of the month before the newest shard, can ask for is forgotten.
    """
    line, store = place.pipeline, online.opened(place.settings)
    try:
        shards = {table.name: catalog.published(place.journal, table.name) for table in line.all_tables}
        stored = store.materialize(lookups_of(line.features), shards, since=since, on_step=on_step)
        if known := shards[line.table.name]:
            # Late requests for the month before still find their history; what is older can be filled in again from the shards.
            border = max(shard.time_min for shard in known) - KEPT_US
            store.trim(border if since is None else min(border, since))
        return stored
    finally:
        store.close()


def sources(place: Place) -> list[dict[str, Any]]:
    """What the online store holds: rows, entities and freshness of each source."""
    store = online.opened(place.settings)
    try:
        return [
            {
                "source": held.title,
                **held.about(),
                "rows": (size := store.size(held.name)).rows,
                "entities": size.entities,
                "newest": _moment(held.newest) if size.rows else None,
                "stored": _moment(held.stored) if held.stored else None,
            }
            for held in store.freshness()
        ]
    finally:
        store.close()


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")
