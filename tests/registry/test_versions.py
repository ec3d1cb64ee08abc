"""Versions: numbering, idempotent registration, overruled gates, aliases."""

from __future__ import annotations

from pathlib import Path

import pytest

from ct.errors import Conflict, Forbidden, NotFound
from ct.registry import routes, versions
from ct.store.journal import Journal
from ct.testing import journal


def register(book: Journal, run: str, verdict: str = "pass") -> versions.Version:
    return versions.register(
        book, "p", manifest=run * 2, run=run, verdict=verdict, metrics={"auroc": 0.7}, reasons=("because",)
    )


def test_a_run_is_registered_once(tmp_path: Path) -> None:
    book = journal(tmp_path)
    assert versions.next_name(book, "p", "a") == "v1"
    first = register(book, "a")
    assert register(book, "a") == first
    assert versions.next_name(book, "p", "a") == "v1"
    assert register(book, "b").name == "v2"
    assert [version.name for version in versions.all_versions(book, "p")] == ["v1", "v2"]


def test_only_a_cleared_version_may_get_traffic(tmp_path: Path) -> None:
    book = journal(tmp_path)
    failed = register(book, "a", "fail")
    with pytest.raises(Conflict, match="verdict 'fail'"):
        versions.arm(failed)
    with pytest.raises(Conflict, match="reason"):
        versions.overrule(book, "p", "v1", reason=" ")
    cleared = versions.overrule(book, "p", "v1", reason="shown in a demo")
    assert cleared.override == "test: shown in a demo"
    assert versions.arm(cleared).version == "v1"
    assert register(book, "b").name == "v2", "an override takes no number"


def test_only_an_approver_may_overrule_where_some_are_named(tmp_path: Path) -> None:
    book = journal(tmp_path)
    register(book, "a", "inconclusive")
    with pytest.raises(Forbidden, match="'test' may not"):
        versions.overrule(book, "p", "v1", reason="I want it", approvers=("alice",))
    assert not versions.get(book, "p", "v1").cleared
    with book.in_name_of("alice"):
        found = versions.overrule(book, "p", "v1", reason="seen by hand", approvers=("alice",))
    assert found.override == "alice (approver): seen by hand"
    with book.in_name_of("alice (admin)"):  # by a token of that name
        found = versions.overrule(book, "p", "v1", reason="seen again", approvers=("alice",))
    assert found.override == "alice (admin) (approver): seen again"
    roles = [event.data["role"] for event in book.read(versions.stream("p"), types=["GateOverruled"])]
    assert roles == ["approver", "approver"]


def test_aliases_follow_the_route(tmp_path: Path) -> None:
    book = journal(tmp_path)
    one, two, three = (register(book, run) for run in "abc")
    route = routes.put(book, routes.first("p", versions.arm(one)), cause="first")
    route = routes.put(book, route.with_canary(versions.arm(two)), cause="start")
    assert versions.alias(book, "p") == {"v1": "champion", "v2": "candidate", "v3": "registered"}
    routes.put(book, route.promoted(), cause="passed")
    assert versions.alias(book, "p") == {"v1": "retired", "v2": "champion", "v3": "registered"}
    assert three.name == "v3"


def test_an_unknown_version_names_the_known_ones(tmp_path: Path) -> None:
    book = journal(tmp_path)
    register(book, "a")
    with pytest.raises(NotFound, match="v1"):
        versions.get(book, "p", "v9")
