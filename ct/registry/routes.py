"""Route: which version gets which share of an endpoint's traffic. Immutable, numbered by epoch, a fold of the journal."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from ct.errors import Conflict, InvalidRequest, NotFound
from ct.store.journal import Event, Journal, New

WHOLE = 10_000
"""All traffic, in buckets: a weight of 1,000 is 10 %."""
STABLE, CANARY = "stable", "canary"
OVERRIDES = ("always", "never")


@dataclass(frozen=True)
class Arm:
    """A version that may get traffic, with the digest of its files' manifest.

    `app` names the Serve application that runs it apart; empty where the endpoint's own replicas hold it.
    """

    version: str
    manifest: str
    app: str = ""


@dataclass(frozen=True)
class Share:
    """A candidate's part: `weight` of WHOLE buckets of the traffic; with `shadow` it also scores what stable answers, unseen.

    `gap` are the buckets after its own that stay stable's, so that the candidates after it keep their users. One that is `out` was ended while
    others go on: it keeps its place, which is its name, and nothing else.
    """

    arm: Arm
    weight: int = 0
    shadow: bool = False
    gap: int = 0
    out: bool = False


@dataclass(frozen=True)
class Route:
    """Who answers. What the `candidates` do not get goes to stable.

    `salt` fixes the sticky assignment of one rollout; `key` signs prediction ids and never changes for an endpoint. `only` and `without` name
    values of segments: a request gets a candidate when it has one of `only`'s values in each segment named, and none of `without`'s.
    `override` are the values of the header x-canary that are obeyed.
    """

    endpoint: str
    epoch: int
    stable: Arm
    candidates: tuple[Share, ...] = ()
    salt: str = ""
    key: str = ""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    override: tuple[str, ...] = OVERRIDES

    def __post_init__(self) -> None:
        weights = [share.weight for share in self.candidates]
        gaps = [share.gap for share in self.candidates]
        if any(not 0 <= part <= WHOLE for part in (*weights, *gaps)) or sum(weights) + sum(gaps) > WHOLE:
            raise InvalidRequest(
                f"weights {weights}", f"0 to {WHOLE}, together too", "give the shares in hundredths of a percent"
            )
        versions = [arm.version for arm in self.arms]
        if len(set(versions)) != len(versions):
            raise InvalidRequest(f"the versions {versions} in one route", "each version once", "leave the second one out")
        if unknown := set(self.override) - set(OVERRIDES):
            raise InvalidRequest(f"overrides {sorted(unknown)}", f"among {list(OVERRIDES)}", "mend it")

    @property
    def canary(self) -> Arm | None:
        """The first candidate, None without one."""
        return self.candidates[0].arm if self.candidates else None

    @property
    def weight(self) -> int:
        """The first candidate's weight."""
        return self.candidates[0].weight if self.candidates else 0

    @property
    def shadow(self) -> bool:
        """Is the first candidate shadowed?"""
        return bool(self.candidates) and self.candidates[0].shadow

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The versions that must be ready, stable first."""
        return (self.stable, *(share.arm for share in self.candidates if not share.out))

    @property
    def share(self) -> float:
        """The first candidate's share of traffic, 0 to 1."""
        return self.weight / WHOLE

    @property
    def shares(self) -> dict[str, int]:
        """Every arm's weight by its name; stable has what is left."""
        given = {arm_name(at): share.weight for at, share in enumerate(self.candidates) if not share.out}
        return {STABLE: WHOLE - sum(given.values()), **given}

    def admits(self, context: Mapping[str, str | None]) -> bool:
        """May a request with these segments get a candidate?"""
        return all(context.get(name) in values for name, values in self.only.items()) and not any(
            context.get(name) in values for name, values in self.without.items()
        )

    def to_json(self) -> dict[str, Any]:
        """The route as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Route:
        """The route that `to_json` described, now or before there could be several candidates."""
        fields = dict(data)
        fields["stable"] = Arm(**fields["stable"])
        if "candidates" not in fields:
            old = [fields.pop(name, default) for name, default in (("canary", None), ("weight", 0), ("shadow", False))]
            fields["candidates"] = [{"arm": old[0], "weight": old[1], "shadow": old[2]}] if old[0] else []
        fields["candidates"] = tuple(Share(**{**share, "arm": Arm(**share["arm"])}) for share in fields["candidates"])
        for name in ("only", "without"):
            fields[name] = {segment: tuple(values) for segment, values in fields.get(name, {}).items()}
        fields["override"] = tuple(fields.get("override", OVERRIDES))
        return Route(**fields)

    def with_canary(self, canary: Arm, *, weight: int = 0, shadow: bool = False) -> Route:
        """The next route: `canary` alone gets `weight`."""
        return self.with_candidates((Share(canary, weight, shadow),))

    def with_candidates(self, candidates: tuple[Share, ...]) -> Route:
        """The next route: each candidate gets its share. New candidates get a new salt, so that each rollout draws its users anew."""
        same = [share.arm.version for share in self.candidates] == [share.arm.version for share in candidates]
        salt = self.salt if same and self.salt else secrets.token_hex(8)
        return replace(self, epoch=self.epoch + 1, candidates=candidates, salt=salt)

    def promoted(self, version: str = "") -> Route:
        """The next route: the candidate `version`, the first by default, is stable and answers everything."""
        found = [share.arm for share in self.candidates if version in ("", share.arm.version)]
        if not found:
            raise Conflict(
                f"there is no candidate {version}" if version else "there is no canary to promote",
                "a running rollout",
                "start one with `ct rollout start`",
            )
        return replace(self.without_canary(), stable=found[0])

    def dropping(self, version: str) -> Route:
        """The next route: one of several candidates has nothing any more. The others keep their users, its own go to stable."""
        shares = (
            Share(share.arm, gap=share.weight + share.gap, out=True) if share.arm.version == version else share
            for share in self.candidates
        )
        return self.with_candidates(tuple(shares))

    def without_canary(self) -> Route:
        """The next route: stable answers everything."""
        return replace(self, epoch=self.epoch + 1, candidates=(), only={}, without={}, override=OVERRIDES)


def arm_name(at: int) -> str:
    """The name of the candidate in place `at`: canary, canary-2, …"""
    return CANARY if at == 0 else f"{CANARY}-{at + 1}"


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
