"""What the stored profiles of a table's shards say together: over all rows, shard by shard over time, and what a new shard is profiled like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

import numpy as np

from ct.data import catalog
from ct.data.profile import Profiles
from ct.data.tables import ShardFile
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New


def digests(journal: Journal, table: str) -> dict[str, str]:
    """The artifact of each published shard's profile by the shard's SHA-256, in order of publication; the newest after a rewriting."""
    found: dict[str, str] = {}
    for event in journal.read(catalog.stream(table), types=["ShardPublished", catalog.REWRITTEN, catalog.REPROFILED]):
        if event.type == "ShardPublished":
            found[event.data["sha256"]] = str(event.data["profile"])
        else:
            found |= {name: str(item["profile"]) for name, item in event.data["shards"].items() if "profile" in item}
    return found


def profiles(journal: Journal, artifacts: Artifacts, table: str) -> list[tuple[ShardFile, Profiles]]:
    """Every published shard that still has rows, with its profiles, in order of publication."""
    return list(_each(journal, artifacts, table))


def whole(journal: Journal, artifacts: Artifacts, table: str) -> Profiles | None:
    """The profiles over all published rows, None before the first shard."""
    found = [one for _, one in _each(journal, artifacts, table)]
    return reduce(Profiles.merge, found) if found else None


def forget(journal: Journal, artifacts: Artifacts, table: str, column: str, value: str) -> int:
    """Take a value of a text column out of every profile of a table; its rows count among the others. Returns the profiles changed."""
    changed = {}
    for shard, made in _each(journal, artifacts, table):
        left = without(made, column, value)
        if left is not made:
            changed[shard.sha256] = {"profile": artifacts.put(left.to_bytes())}
    if changed:
        journal.append(catalog.stream(table), [New(catalog.REPROFILED, {"shards": changed})])
    return len(changed)


def without(made: Profiles, column: str, value: str) -> Profiles:
    """The profiles without one value of a text column; `made` itself when it is not named there. What merged before still merges."""
    counts, layout = made.counts.astype(np.int64), list(made.layout)  # as stored, they have no room for a sum
    for place, item in enumerate(made.layout):
        if item.name != column or not item.text or value not in {*item.values, *(item.known or ())}:
            continue
        if value in item.values:
            at, others = item.values.index(value), len(item.values)
            counts[:, place, others] += counts[:, place, at]
            counts[:, place, at:others] = counts[:, place, at + 1 : others + 1]
            counts[:, place, others] = 0
        known = None if item.known is None else item.known - {value}
        layout[place] = replace(item, values=tuple(held for held in item.values if held != value), known=known)
        return replace(made, counts=counts, layout=tuple(layout))
    return made


def reference(journal: Journal, artifacts: Artifacts, table: str) -> Profiles | None:
    """What the next shard is profiled like, so that all merge: the first shard, and for columns it lacks the first shard that has them."""
    names = set(catalog.kinds(journal, table)) if catalog.contract(journal, table) is not None else set()
    found: Profiles | None = None
    for _, one in _each(journal, artifacts, table):
        found = one if found is None else found.extended(one)
        if names <= set(found.names):
            break
    return found


def _each(journal: Journal, artifacts: Artifacts, table: str) -> Iterator[tuple[ShardFile, Profiles]]:
    stored = digests(journal, table)
    for shard in catalog.published(journal, table):
        yield shard, Profiles.from_bytes(artifacts.get(stored[shard.sha256]))
