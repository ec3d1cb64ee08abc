"""What was made from what: a fold over the events that carry `makes` (a node) and `from` (its inputs). Asked from either end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ct.store.journal import Event, Journal


@dataclass(frozen=True)
class Made:
    """One made thing: when, by whom, from which inputs, and the event's data."""

    node: str
    sources: tuple[str, ...]
    at: datetime
    actor: str
    type: str
    data: Mapping[str, Any]


def read(journal: Journal) -> dict[str, Made]:
    """Every made thing by its node. A node looks like `shard/flights/2013-01` or `version/flight-delay/v2`."""
    return {made.node: made for event in journal.read() if (made := _made(event))}


def origins(graph: Mapping[str, Made], node: str) -> Iterator[Made]:
    """`node` and all it was made from, nearest first, each once."""
    seen, queue = {node}, [node]
    while queue:
        name = queue.pop(0)
        if name not in graph:
            continue
        yield graph[name]
        for source in graph[name].sources:
            if source not in seen:
                seen.add(source)
                queue.append(source)


def products(graph: Mapping[str, Made], node: str) -> tuple[Made, ...]:
    """All that was made from `node`, directly or not, oldest first."""
    reached = {node}
    made = []
    for item in sorted(graph.values(), key=lambda item: item.at):
        if reached & set(item.sources):
            reached.add(item.node)
            made.append(item)
    return tuple(made)


def _made(event: Event) -> Made | None:
    if "makes" not in event.data:
        return None
    return Made(event.data["makes"], tuple(event.data.get("from", ())), event.at, event.actor, event.type, event.data)
