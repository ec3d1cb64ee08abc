"""Which arm a request goes to: sticky by unit, monotone in the weight; and the circuit that turns a failing canary off at once. Pure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from ct.errors import InvalidRequest
from ct.registry.routes import CANARY, STABLE, WHOLE, Route, arm_name


@dataclass(frozen=True)
class Assignment:
    """`arm` is where the request belongs. Forced requests are answered but never judged."""

    arm: str
    forced: bool = False


def bucket(salt: str, unit: str) -> int:
    """The unit's place among WHOLE buckets, evenly spread and fixed for one salt. An empty unit is drawn at random."""
    if not unit:
        return random.randrange(WHOLE)
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), key=salt.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") % WHOLE


def assign(route: Route, unit: str, force: str = "", context: Mapping[str, str | None] | None = None) -> Assignment:
    """The arm for `unit`. A unit that the canary has keeps it while the weight grows. `force` is the header x-canary.

    Candidates have ranges of buckets that follow each other. A request outside the route's segments (`context` gives its own) is stable's
    and, like a forced one, not judged. Raises InvalidRequest for a value of `force` that the route does not allow.
    """
    if force and force not in route.override:
        raise InvalidRequest(
            f"x-canary is {force[:40]!r}",
            " or ".join(route.override) or "no such header",
            "leave the header out",
            status=400,
            field="x-canary",
        )
    if not route.candidates:
        return Assignment(STABLE, forced=bool(force))
    if force:
        return Assignment(CANARY if force == "always" else STABLE, forced=True)
    if (route.only or route.without) and not route.admits(context or {}):
        return Assignment(STABLE, forced=True)
    place = bucket(route.salt, unit)
    for at, share in enumerate(route.candidates):
        if place < share.weight:
            return Assignment(arm_name(at))
        place -= share.weight
        if place < share.gap:
            return Assignment(STABLE)
        place -= share.gap
    return Assignment(STABLE)


@dataclass
class Circuit:
    """Counts consecutive canary failures; open from `limit` on, until the route changes."""

    limit: int = 5
    failures: int = 0

    @property
    def open(self) -> bool:
        """Is the canary off here?"""
        return self.failures >= self.limit

    def record(self, ok: bool) -> None:
        """One answer of the canary, or one failure."""
        if not self.open:
            self.failures = 0 if ok else self.failures + 1


__all__ = ["CANARY", "STABLE", "Assignment", "Circuit", "assign", "bucket"]
