"""Tokens: what opens, what does not, what is kept of a secret, and that nothing tells one refusal from another."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.clock import TurnableClock
from ct.errors import Conflict, CtError, Forbidden, InvalidRequest, NotFound, Unauthenticated
from ct.governance import access
from ct.governance.access import ROLES, Gatekeeper, may
from ct.store.journal import Journal

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock(START)


@pytest.fixture
def journal(tmp_path: Path, clock: TurnableClock) -> Journal:
    return Journal(f"sqlite:///{tmp_path / 'journal.db'}", clock=clock)


def keeper(journal: Journal, clock: TurnableClock) -> Gatekeeper:
    return Gatekeeper(access.tokens(journal), clock=clock)


def test_a_secret_opens_and_the_journal_holds_only_its_hash(journal: Journal, clock: TurnableClock, tmp_path: Path) -> None:
    token, secret = access.create(journal, "shop", "predict", clock=clock)
    assert keeper(journal, clock).caller(secret) == token
    assert len(secret.rpartition("_")[2]) * 4 == 256
    assert token.id in secret
    random_part = secret.rpartition("_")[2]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert random_part.encode() not in stored
    assert token.digest.encode() in stored
    assert random_part not in repr(token)
    assert token.digest not in repr(token)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_opens_its_own_doors_and_no_others(role: str) -> None:
    opens = {needed for needed in ROLES if may(role, needed)}
    assert opens == {"admin": set(ROLES), "operate": {"operate", "read"}}.get(role, {role})
    assert may(role, "")


def test_too_low_a_role_is_forbidden_and_says_which_is_needed(journal: Journal, clock: TurnableClock) -> None:
    _, secret = access.create(journal, "shop", "predict", clock=clock)
    gate = keeper(journal, clock)
    gate.admit(secret, "predict")
    with pytest.raises(Forbidden, match="operate"):
        gate.admit(secret, "operate")


def test_without_any_token_it_is_open_and_once_there_was_one_never_again(journal: Journal, clock: TurnableClock) -> None:
    assert keeper(journal, clock).admit("", "admin") is None
    _, secret = access.create(journal, "shop", "predict", expires=START + timedelta(hours=1), clock=clock)
    access.revoke(journal, "shop", reason="lost", clock=clock)
    gate = keeper(journal, clock)
    assert not gate.open
    assert not access.anyone(journal, clock=clock)
    for shown in ("", secret):
        with pytest.raises(Unauthenticated):
            gate.admit(shown, "predict")
    assert gate.admit("", "") is None


def test_it_opens_until_it_expires(journal: Journal, clock: TurnableClock) -> None:
    _, secret = access.create(journal, "shop", "predict", expires=START + timedelta(hours=1), clock=clock)
    gate = keeper(journal, clock)
    clock.turn(timedelta(minutes=59, seconds=59))
    gate.caller(secret)
    clock.turn(timedelta(seconds=1))
    with pytest.raises(Unauthenticated):
        gate.caller(secret)


def test_a_rotation_leaves_the_old_secret_its_overlap_and_the_new_one_the_same_life(
    journal: Journal, clock: TurnableClock
) -> None:
    _, old = access.create(journal, "shop", "predict", expires=START + timedelta(days=30), clock=clock)
    clock.turn(timedelta(days=29))
    token, new = access.rotate(journal, "shop", overlap=timedelta(hours=2), clock=clock)
    gate = keeper(journal, clock)
    assert gate.caller(old).name == gate.caller(new).name == "shop"
    assert token.expires == START + timedelta(days=59)
    clock.turn(timedelta(hours=2))
    with pytest.raises(Unauthenticated):
        gate.caller(old)
    gate.caller(new)
    access.revoke(journal, "shop", clock=clock)
    with pytest.raises(Unauthenticated):
        keeper(journal, clock).caller(new)


def test_an_overlap_never_makes_an_old_secret_live_longer(journal: Journal, clock: TurnableClock) -> None:
    first, old = access.create(journal, "shop", "predict", expires=START + timedelta(hours=1), clock=clock)
    access.rotate(journal, "shop", overlap=timedelta(days=1), clock=clock)
    assert access.tokens(journal)[0].expires == first.expires
    clock.turn(timedelta(hours=1))
    with pytest.raises(Unauthenticated):
        keeper(journal, clock).caller(old)


def test_wrong_names_roles_and_times_are_refused(journal: Journal, clock: TurnableClock) -> None:
    for name in ("", "Shop", "a b", "x" * 64, "../x", "-x"):
        with pytest.raises(InvalidRequest, match="name"):
            access.create(journal, name, "predict", clock=clock)
    with pytest.raises(InvalidRequest, match="role"):
        access.create(journal, "shop", "root", clock=clock)
    for expires in (START, START.replace(tzinfo=None) + timedelta(days=1)):
        with pytest.raises(InvalidRequest, match="expiry"):
            access.create(journal, "shop", "predict", expires=expires, clock=clock)
    with pytest.raises(InvalidRequest, match="overlap"):
        access.rotate(journal, "shop", overlap=timedelta(days=-1), clock=clock)
    for change in (access.rotate, access.revoke):
        with pytest.raises(NotFound):
            change(journal, "shop", clock=clock)
    access.create(journal, "shop", "predict", clock=clock)
    with pytest.raises(Conflict):
        access.create(journal, "shop", "admin", clock=clock)


def _refusal(gate: Gatekeeper, secret: str) -> CtError:
    with pytest.raises(Unauthenticated) as caught:
        gate.caller(secret)
    return caught.value


def test_refusals_are_alike_in_words_and_time(journal: Journal, clock: TurnableClock) -> None:
    """Absent, malformed, of an unknown name, of a known name but wrong, expired, revoked."""
    _, expired = access.create(journal, "expired", "admin", expires=START + timedelta(hours=1), clock=clock)
    _, revoked = access.create(journal, "revoked", "admin", clock=clock)
    _, right = access.create(journal, "right", "admin", clock=clock)
    access.revoke(journal, "revoked", clock=clock)
    clock.turn(timedelta(hours=2))
    gate = keeper(journal, clock)
    near = right[:-1] + ("0" if right[-1] != "0" else "1")
    shown = {"malformed": "x" * len(right), "unknown": f"ct_{'0' * 12}_{'0' * 64}", "near": near}
    shown |= {"expired": expired, "revoked": revoked}
    said = {name: str(_refusal(gate, secret)) for name, secret in (shown | {"absent": ""}).items()}
    assert len(set(said.values())) == 1, said
    took: dict[str, list[int]] = {name: [] for name in shown}
    for _ in range(2000):
        for name, secret in shown.items():
            begun = perf_counter_ns()
            with suppress(Unauthenticated):
                gate.caller(secret)
            took[name].append(perf_counter_ns() - begun)
    middle = {name: median(times) for name, times in took.items()}
    assert max(middle.values()) < 2 * min(middle.values()), middle
    assert max(middle.values()) < 50_000, middle


@settings(derandomize=True, max_examples=200)
@given(st.text(max_size=90) | st.from_regex(r"ct_[0-9a-f]{12}_[0-9a-f]{64}", fullmatch=True))
def test_no_text_opens_a_gate(secret: str) -> None:
    token = access.Token("shop", "admin", "0" * 64, START, id="0" * 12)
    with pytest.raises(Unauthenticated):
        Gatekeeper([token]).caller(secret)


@pytest.mark.parametrize(
    ("header", "secret"),
    [("Bearer ct_x", "ct_x"), ("bearer  ct_x ", "ct_x"), ("Basic ct_x", ""), ("ct_x", ""), ("", ""), ("Bearer", "")],
)
def test_only_bearer_headers_count(header: str, secret: str) -> None:
    assert access.bearer(header) == secret


def test_tokens_survive_their_copy_on_disk(journal: Journal, clock: TurnableClock) -> None:
    access.create(journal, "a", "read", expires=START + timedelta(days=1), clock=clock)
    access.rotate(journal, "a", clock=clock)
    access.create(journal, "b", "admin", clock=clock)
    access.revoke(journal, "b", clock=clock)
    held = access.tokens(journal)
    assert access.from_json(json.loads(json.dumps(access.to_json(held)))) == held
    for torn in ([{}], [{"id": 1}], [7]):
        with pytest.raises((ValueError, KeyError, TypeError)):
            access.from_json(torn)  # type: ignore[arg-type]
