"""Which arm a request goes to: sticky by unit, monotone in the weight; and the circuit that turns a failing canary off at once. Pure."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from ct.errors import InvalidRequest
from ct.registry.routes import WHOLE, Route

STABLE, CANARY = "stable", "canary"
FORCE = {"": "", "always": CANARY, "never": STABLE}
"""Values of the header x-canary and the arm that they force."""


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


def assign(route: Route, unit: str, force: str = "") -> Assignment:
    """The arm for `unit`. A unit that the canary has keeps it while the weight grows. `force` is the header x-canary.

    Raises InvalidRequest for another value of `force`.
    """
    if force not in FORCE:
        raise InvalidRequest(
            f"x-canary is {force[:40]!r}", "always or never", "leave the header out", status=400, field="x-canary"
        )
    if route.canary is None:
        return Assignment(STABLE, forced=bool(force))
    if force:
        return Assignment(FORCE[force], forced=True)
    return Assignment(CANARY if bucket(route.salt, unit) < route.weight else STABLE)


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
