"""One key is one deed, one epoch one precondition: over two processes of `ct api` on one journal, and over SIGKILL between any two changes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ct.api import hands
from ct.api import once as deeds
from ct.api.application import build
from ct.api.once import Once, Stale
from ct.control import ending
from ct.control.act import Actor
from ct.errors import Conflict
from ct.registry import flags, routes
from ct.rollout import state
from ct.store.journal import Journal, New
from tests.api.served import BASE, commands
from tests.control import rolling

KEYS = [f"key-{at}" for at in range(4)]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_processes_do_one_key_once(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "postgres":
        monkeypatch.setenv("CT_DATABASE_URL", request.getfixturevalue("postgres").new())
    act = rolling.actor(tmp_path / "p", rolling.PLANS["canary"])
    act.start_rollout("v2")
    with ExitStack() as stack:
        served = stack.enter_context(commands(tmp_path / "p", 2))
        ways = [stack.enter_context(httpx.Client(base_url=address, trust_env=False, timeout=60)) for address, _ in served]
        people = stack.enter_context(ThreadPoolExecutor(len(ways) * len(KEYS)))

        def pause(way: httpx.Client, key: str) -> tuple[int, Any]:
            found = way.post(f"{BASE}/rollouts/r1:pause", headers={"idempotency-key": key})
            return found.status_code, found.json()

        asked = {key: [people.submit(pause, way, key) for way in ways] for key in KEYS}
        found = {key: [item.result() for item in items] for key, items in asked.items()}
        served[0][1].kill()
        later = {key: pause(ways[1], key) for key in KEYS}
        moved = ways[1].put(f"{BASE}/flags/canary", json={"value": False}, headers={"if-match": '"1"'})
    for key in KEYS:
        assert found[key][0][0] == 200
        assert found[key][0] == found[key][1] == later[key]
    assert (moved.status_code, moved.json()["error"]) == (412, "Stale")
    told = [(event.type, event.actor) for event in act.journal.read(state.stream(rolling.LINE))]
    assert told.count(("RolloutPaused", "ops")) == len([item for item in told if item[0] == "RolloutPaused"]) == len(KEYS)
    assert act.journal.verify()
    act.close()


def ask(act: Actor, verb: str, body: Any, key: str, **more: Any) -> httpx.Response:
    """One request to an application of this process."""

    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app=build(act, **more))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(f"{BASE}{verb}", json=body, headers={"idempotency-key": key} if key else {})

    return asyncio.run(sent())


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("/rollouts", {"versions": ["v3"]}),
        ("/rollouts/r1:abort", {}),
        ("/rollouts/r1:promote", {"full": True}),
        (":undo", {}),
        ("/rollouts/r1:set-weight", {"percent": 7}),
        ("/rollouts/r1:resume", {}),
    ],
)
def test_killed_anywhere_the_same_key_gives_the_same_end(tmp_path: Path, verb: str, body: Any) -> None:
    """SIGKILL before each durable change of a verb; then the same request again, twice."""
    start = tmp_path / "start"
    act = rolling.actor(start, rolling.PLANS["canary"])
    act.start_rollout("v2")
    if verb in (":undo", "/rollouts"):
        act.promote(full=True)
    if verb.endswith("resume"):
        act.set_weight(7)
    act.close()

    def run(root: Path, kill: int) -> Any:
        def work() -> None:
            child = rolling.actor(root, rolling.PLANS["canary"])
            if kill:
                rolling.kill_at(kill)
            assert ask(child, verb, body, "k1").status_code in (200, 202)

        return work

    def seen(root: Path) -> dict[str, Any]:
        found = rolling.actor(root, rolling.PLANS["canary"])
        try:
            again = ask(found, verb, body, "k1")
            more = ask(found, verb, body, "k1")
            assert (again.status_code, again.json()) == (more.status_code, more.json())
            route = again.json().get("route", {})
            told = {name: route.get(name) for name in ("shares", "stable")} | {"id": again.json().get("id")}
            return rolling.ended(found) | {"status": again.status_code, "told": told}
        finally:
            found.close()

    plain = rolling.copied(start, tmp_path / "plain")
    assert rolling.forked(run(plain, 0)) == 0
    wanted = seen(plain)
    for kill in range(1, 60):
        root = rolling.copied(start, tmp_path / str(kill))
        code = rolling.forked(run(root, kill))
        if code == 0:
            break
        assert code == -9, kill
        assert seen(root) == wanted, kill
    assert code == 0, "it has fewer changes than that"
    assert kill > 3


def test_without_a_cluster_a_rollback_is_journaled_and_the_same_key_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    act = rolling.actor(tmp_path / "p", rolling.PLANS["canary"])
    act.start_rollout("v2")
    replicas = act.serving
    found = ask(act, "/rollouts/r1:abort", {}, "k1", join=hands.Hands(act.settings, rolling.LINE).joined)
    assert (found.status_code, found.headers["retry-after"], act.route().candidates) == (503, "1", ())
    assert "no Ray cluster runs" in found.json()["found"]
    assert state.require(act.journal, rolling.LINE).decided == "aborted"
    act.__dict__["serving"] = replicas
    found = ask(act, "/rollouts/r1:abort", {}, "k1")
    assert (found.status_code, found.json()["rollout"]["state"]) == (200, "RolledBack")
    assert rolling.ended(act)["served"]
    act.close()


@pytest.mark.parametrize("key", ["", "k1"])
def test_a_loop_that_is_quicker_takes_no_answer_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """`ct watch` ends the rollout between the decision to abort and its route: that is done, not a conflict."""
    act, loop = (rolling.actor(tmp_path / "p", rolling.PLANS["canary"]) for _ in range(2))
    act.start_rollout("v2")
    change = act.change

    def late(route: routes.Route, cause: str) -> routes.Route:
        monkeypatch.setattr(act, "change", change)
        ending.finish(loop, state.require(loop.journal, rolling.LINE))
        return change(route, cause)

    monkeypatch.setattr(act, "change", late)
    found = ask(act, "/rollouts/r1:abort", {}, key)
    assert (found.status_code, found.json()["rollout"]["state"]) == (200, "RolledBack"), found.text
    assert (act.route().epoch, act.route().candidates) == (3, ())
    if key:
        assert ask(act, "/rollouts/r1:abort", {}, key).json() == found.json()
    act.close()
    loop.close()


def once(journal: Journal, **changed: Any) -> Once:
    return Once(journal, **{"endpoint": "e", "verb": "set_flag", "asked": "a", "key": "k"} | changed)


def test_the_epoch_and_the_key_stand_in_the_transaction_of_the_deed(tmp_path: Path) -> None:
    """What comes between the first look and the append undoes the append."""
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    here, there = Journal(url), Journal(url)
    routes.put(there, routes.first("e", routes.Arm("v1", "m")), cause="first")
    request = once(here, epochs=frozenset({"1"}))
    with request.turn() as known, here.in_name_of("ann (operate)", request.watch):
        request.match()
        assert known is None
        routes.put(there, routes.current(there, "e").with_canary(routes.Arm("v2", "m")), cause="between")  # type: ignore[union-attr]
        with pytest.raises(Stale, match="of epoch 2"):
            flags.set_(here, "e", "canary", False)
    assert flags.current(here, "e").canary
    assert here.version(request.stream) == 0
    request = once(here)
    with request.turn(), here.in_name_of("ann (operate)", request.watch):
        there.append(request.stream, [New("Asked", {"asked": "a", "rollout": "", "event": "FlagSet"})])
        with pytest.raises(Conflict):
            flags.set_(here, "e", "canary", False)
    assert flags.current(here, "e").canary


def test_who_lost_the_lease_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    here, there = Journal(url), Journal(url)
    monkeypatch.setattr(deeds, "TTL_SECONDS", 0.2)
    monkeypatch.setattr(deeds, "BEAT_SECONDS", 60.0)  # it hangs
    slow, quick = once(here), once(there)
    with slow.turn():
        with quick.turn() as known, there.in_name_of("", quick.watch):
            assert known is None
            flags.set_(there, "e", "canary", False)
            quick.answered(200, {"canary": False})
        with here.in_name_of("", slow.watch), pytest.raises(Conflict, match="taken over"):
            flags.set_(here, "e", "shadow", False)
    assert flags.current(here, "e").shadow
    with once(here).turn() as known:
        assert known is not None
        assert (known.status, known.said) == (200, {"canary": False})


def test_who_waits_for_a_key_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    monkeypatch.setattr(deeds, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(deeds, "BEAT_SECONDS", 0.1)
    with once(Journal(url)).turn(), pytest.raises(Conflict, match="in work"), once(Journal(url)).turn():
        pass
