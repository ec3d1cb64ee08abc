"""Route: which version gets which share of an endpoint's traffic. Immutable, numbered by epoch, a fold of the journal."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from ct.errors import Conflict, InvalidRequest, NotFound
from ct.store.journal import Event, Journal, New

WHOLE = 10_000
"""All traffic, in buckets: a weight of 1,000 is 10 %."""


@dataclass(frozen=True)
class Arm:
    """A version that may get traffic, with the digest of its files' manifest."""

    version: str
    manifest: str


@dataclass(frozen=True)
class Route:
    """Who answers. `weight` of WHOLE buckets go to the canary, the rest to stable; `shadow` scores each request on the canary too, unseen.

    `salt` fixes the sticky assignment of one rollout; `key` signs prediction ids and never changes for an endpoint.
    """

    endpoint: str
    epoch: int
    stable: Arm
    canary: Arm | None = None
    weight: int = 0
    shadow: bool = False
    salt: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= WHOLE:
            raise InvalidRequest(f"weight {self.weight}", f"0 to {WHOLE}", "give the share in hundredths of a percent")
        if self.canary is None and (self.weight or self.shadow):
            raise InvalidRequest("a weight or a shadow without a canary", "a canary version", "start a rollout first")

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The versions that must be loaded."""
        return (self.stable,) if self.canary is None else (self.stable, self.canary)

    @property
    def share(self) -> float:
        """The canary's share of traffic, 0 to 1."""
        return self.weight / WHOLE

    def to_json(self) -> dict[str, Any]:
        """The route as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Route:
        """The route that `to_json` described."""
        fields = dict(data)
        fields["stable"] = Arm(**fields["stable"])
        fields["canary"] = Arm(**fields["canary"]) if fields.get("canary") else None
        return Route(**fields)

    def with_canary(self, canary: Arm, *, weight: int = 0, shadow: bool = False) -> Route:
        """The next route: `canary` gets `weight`. A new canary gets a new salt, so that each rollout draws its users anew."""
        salt = self.salt if self.canary == canary and self.salt else secrets.token_hex(8)
        return replace(self, epoch=self.epoch + 1, canary=canary, weight=weight, shadow=shadow, salt=salt)

    def promoted(self) -> Route:
        """The next route: the canary is stable and answers everything."""
        if self.canary is None:
            raise Conflict("there is no canary to promote", "a running rollout", "start one with `ct rollout start`")
        return replace(self, epoch=self.epoch + 1, stable=self.canary, canary=None, weight=0, shadow=False)

    def without_canary(self) -> Route:
        """The next route: stable answers everything."""
        return replace(self, epoch=self.epoch + 1, canary=None, weight=0, shadow=False)


def stream(endpoint: str) -> str:
    """The journal stream of an endpoint's routes."""
    return f"route/{endpoint}"


def first(endpoint: str, stable: Arm) -> Route:
    """An endpoint's first route."""
    return Route(endpoint=endpoint, epoch=1, stable=stable, key=secrets.token_hex(16))


def current(journal: Journal, endpoint: str) -> Route | None:
    """The newest route, None before the first deployment."""

    def step(_: Route | None, event: Event) -> Route:
        return Route.from_json(event.data["route"])

    return journal.fold(stream(endpoint), step, None)


def put(journal: Journal, route: Route, *, cause: str) -> Route:
    """Record `route`. Its epoch must follow the newest one. Raises Conflict otherwise; every epoch is one event of the stream."""
    journal.append(
        stream(route.endpoint), [New("RouteSet", {"route": route.to_json(), "cause": cause})], expected=route.epoch - 1
    )
    return route


@dataclass(frozen=True)
class Live:
    """One entry of an endpoint's history: from `at` on, `route` was in force because of `cause`."""

    at: datetime
    route: Route
    cause: str


def history(journal: Journal, endpoint: str) -> tuple[Live, ...]:
    """Every route that was ever in force, oldest first."""
    return tuple(
        Live(event.at, Route.from_json(event.data["route"]), event.data["cause"]) for event in journal.read(stream(endpoint))
    )


def at(journal: Journal, endpoint: str, moment: datetime) -> Route:
    """What was live at `moment`. Raises NotFound when nothing was."""
    live = [entry.route for entry in history(journal, endpoint) if entry.at <= moment]
    if not live:
        raise NotFound(f"{endpoint!r} was not deployed at {moment.isoformat()}", "a later time", "see `ct rollout history`")
    return live[-1]
