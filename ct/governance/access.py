"""Tokens and roles: who may predict, send ground truth, read, operate, administer. A secret is shown once; the journal keeps its hash only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from ct.clock import Clock, SystemClock
from ct.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from ct.ids import Json
from ct.store.journal import Event, Journal, New

Role = Literal["predict", "feedback", "read", "operate", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
STREAM = "access"
OVERLAP = timedelta(hours=1)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SECRET = re.compile(r"ct_([0-9a-f]{12})_[0-9a-f]{64}")
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Token:
    """One secret of a caller. After a rotation a name has two of them for a while. `id` is the part of the secret that names it."""

    name: str
    role: Role
    digest: str = field(repr=False)
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    id: str = ""

    def live(self, now: datetime) -> bool:
        """Does it open anything at `now`?"""
        return self.revoked is None and (self.expires is None or now < self.expires)


def may(role: str, needed: str) -> bool:
    """May a caller of `role` pass a door that needs `needed` ("" is open to all)? Admin may all, operate may read; the others are separate."""
    return not needed or role in ("admin", needed) or (role == "operate" and needed == "read")


class Gatekeeper:
    """Tells who calls by the secret they show. Without a token ever made it is `open`; once one was made it never opens again.

    `closed` keeps it shut even then: for what listens beyond loopback.
    """

    def __init__(self, tokens: Iterable[Token], *, closed: bool = False, clock: Clock | None = None) -> None:
        self._tokens = {token.id: token for token in tokens}
        self._clock = clock or SystemClock()
        self.open = not self._tokens and not closed

    def caller(self, secret: str) -> Token:
        """The token that `secret` belongs to. Raises Unauthenticated, in the same words and time whatever is wrong with it.

        A secret has 256 random bits, so one SHA-256 is enough: there is nothing to guess, and a request pays about a microsecond.
        """
        shown = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        named = _SECRET.fullmatch(secret)
        token = self._tokens.get(named[1]) if named else None
        right = hmac.compare_digest(shown, token.digest if token else _NOBODY)
        if token is None or not right or not token.live(self._clock.now()):
            raise Unauthenticated("no valid token", "the header 'Authorization: Bearer ct_…'", "ask an admin for a token")
        return token

    def admit(self, secret: str, needed: str) -> Token | None:
        """The caller, if they may pass a door that needs the role `needed`; None where nobody is asked for a token.

        Raises Unauthenticated or Forbidden.
        """
        if not needed or self.open:
            return None
        token = self.caller(secret)
        if not may(token.role, needed):
            raise Forbidden(f"the role {token.role!r}", f"the role {needed!r}", "use a token that may do this")
        return token


def bearer(header: str) -> str:
    """The secret of an Authorization header, "" for any other scheme or none. Cookies and query strings are never looked at."""
    scheme, _, secret = header.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def create(
    journal: Journal, name: str, role: str, expires: datetime | None = None, *, clock: Clock | None = None
) -> tuple[Token, str]:
    """A new token and its secret, which nobody can show again. Raises InvalidRequest, or Conflict when the name has a live token."""
    now = (clock or SystemClock()).now()
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"the name {str(name)[:80]!r}", "1 to 63 of a-z, 0-9 and -", "choose another", field="name")
    if role not in ROLES:
        raise InvalidRequest(f"the role {str(role)[:80]!r}", f"one of {', '.join(ROLES)}", "choose one", field="role")
    _in_future(expires, now)
    seen = journal.version(STREAM)
    if any(token.name == name and token.live(now) for token in tokens(journal)):
        raise Conflict(f"{name!r} has a live token", "a new name", "rotate it, revoke it first, or choose another name")
    return _appended(journal, "TokenCreated", {"name": name, "role": role}, expires, seen)


def rotate(
    journal: Journal,
    name: str,
    *,
    overlap: timedelta = OVERLAP,
    expires: datetime | None = None,
    clock: Clock | None = None,
) -> tuple[Token, str]:
    """A new secret for a name; the old ones are good for `overlap` more, so that callers can change over.

    The new one lives as long as the old was made to, unless `expires` says otherwise. Raises NotFound or InvalidRequest.
    """
    now = (clock or SystemClock()).now()
    if not timedelta(0) <= overlap <= timedelta(days=90):
        raise InvalidRequest(f"an overlap of {overlap}", "0 to 90 days", "choose a shorter one", field="overlap")
    _in_future(expires, now)
    seen = journal.version(STREAM)
    old = _live(journal, name, now)[-1]
    if expires is None and old.expires is not None:
        expires = now + (old.expires - old.created)
    said: dict[str, Json] = {"name": name, "role": old.role, "old_until": (now + overlap).isoformat()}
    return _appended(journal, "TokenRotated", said, expires, seen)


def revoke(journal: Journal, name: str, *, reason: str = "", clock: Clock | None = None) -> None:
    """End every secret of a name. Who holds one is refused once replicas have read it, within about two seconds. Raises NotFound."""
    seen = journal.version(STREAM)
    _live(journal, name, (clock or SystemClock()).now())
    journal.append(STREAM, [New("TokenRevoked", {"name": name, "reason": reason})], expected=seen)


def tokens(journal: Journal) -> tuple[Token, ...]:
    """Every token ever made, oldest first, also those that have ended."""
    return journal.fold(STREAM, _step, ())


def anyone(journal: Journal, *, clock: Clock | None = None) -> bool:
    """Is there a live token? Without one nothing may listen beyond loopback."""
    now = (clock or SystemClock()).now()
    return any(token.live(now) for token in tokens(journal))


def to_json(held: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as plain data, with their hashes: for a file that only the owner may read."""
    times = ("created", "expires", "revoked")
    return [
        {"id": token.id, "name": token.name, "role": token.role, "digest": token.digest}
        | {name: at.isoformat() if (at := getattr(token, name)) else None for name in times}
        for token in held
    ]


def from_json(found: Sequence[dict[str, Any]]) -> tuple[Token, ...]:
    """What `to_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
    return tuple(
        Token(
            item["name"], item["role"], item["digest"], datetime.fromisoformat(item["created"]),
            _time(item["expires"]), _time(item["revoked"]), item["id"],
        )
        for item in found
    )  # fmt: skip


def _appended(journal: Journal, kind: str, said: dict[str, Json], expires: datetime | None, seen: int) -> tuple[Token, str]:
    name = secrets.token_hex(6)
    secret = f"ct_{name}_{secrets.token_hex(32)}"
    said |= {"id": name, "digest": hashlib.sha256(secret.encode()).hexdigest()}
    said["expires"] = expires.isoformat() if expires else None
    (event,) = journal.append(STREAM, [New(kind, said)], expected=seen)
    return _made(event), secret


def _step(held: tuple[Token, ...], event: Event) -> tuple[Token, ...]:
    name = str(event.data.get("name", ""))
    if event.type == "TokenRevoked":
        return tuple(replace(t, revoked=event.at) if t.name == name and t.live(event.at) else t for t in held)
    if event.type == "TokenRotated":
        until = datetime.fromisoformat(str(event.data["old_until"]))
        ended = (replace(t, expires=min(t.expires or until, until)) if t.name == name else t for t in held)
        return (*ended, _made(event))
    return (*held, _made(event)) if event.type == "TokenCreated" else held


def _made(event: Event) -> Token:
    said: dict[str, Any] = event.data
    return Token(said["name"], said["role"], said["digest"], event.at, _time(said["expires"]), None, said["id"])


def _live(journal: Journal, name: str, now: datetime) -> list[Token]:
    found = [token for token in tokens(journal) if token.name == name and token.live(now)]
    if not found:
        raise NotFound(f"no live token {str(name)[:80]!r}", "a name that `ct token list` shows", "check the spelling")
    return found


def _in_future(expires: datetime | None, now: datetime) -> None:
    if expires is not None and (expires.tzinfo is None or expires <= now):
        raise InvalidRequest(f"an expiry at {expires}", "a later time, with its zone", "choose a later one", field="expires")


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
