"""Lineage, asked from either end."""

from __future__ import annotations

from pathlib import Path

from ct.store import lineage
from ct.store.journal import New
from ct.testing import journal


def test_origins_and_products(tmp_path: Path) -> None:
    book = journal(tmp_path)
    for node, sources in (
        ("shard/a", []),
        ("shard/b", []),
        ("run/1", ["shard/a"]),
        ("version/v1", ["run/1"]),
        ("run/2", ["shard/a", "shard/b"]),
    ):
        book.append("x", [New("Made", {"makes": node, "from": sources})])
    book.append("x", [New("Unrelated", {})])
    graph = lineage.read(book)
    assert [made.node for made in lineage.origins(graph, "version/v1")] == ["version/v1", "run/1", "shard/a"]
    assert [made.node for made in lineage.products(graph, "shard/a")] == ["run/1", "version/v1", "run/2"]
    assert [made.node for made in lineage.products(graph, "shard/b")] == ["run/2"]
    assert list(lineage.origins(graph, "shard/unknown")) == []
