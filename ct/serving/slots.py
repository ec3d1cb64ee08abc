"""Model versions loaded side by side in one replica: stage, activate, drain. This is the in-place upgrade; no replica restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic

from ct.data import personal
from ct.errors import Conflict, Unavailable
from ct.registry import files
from ct.registry.routes import Arm, Route, arm_name
from ct.serving.router import Circuit
from ct.serving.runtime import Predictor
from ct.store.artifacts import Artifacts

STAGED_SECONDS = 900.0
"""How long a staged version waits for its route."""


@dataclass
class Slot:
    """A loaded version. `in_flight` counts the requests that use it now; `served` says that a route has named it."""

    manifest: str
    predictor: Predictor
    seconds: float
    at: float
    in_flight: int = 0
    served: bool = False

    @contextmanager
    def using(self) -> Iterator[Predictor]:
        """Keep the slot loaded while a request uses it. Called on the replica's event loop only."""
        self.in_flight += 1
        try:
            yield self.predictor
        finally:
            self.in_flight -= 1


@dataclass(frozen=True)
class Live:
    """What answers now: one immutable reference that each request reads once. `candidates` and `circuits` are by the arm's name."""

    route: Route
    stable: Slot
    candidates: Mapping[str, Slot] = field(default_factory=dict)
    circuits: Mapping[str, Circuit] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(route: Route, slots: Sequence[Slot]) -> Live:
        """A route with the slots of its arms, stable's first."""
        names = [arm_name(at) for at in range(len(route.candidates))]
        return Live(route, slots[0], dict(zip(names, slots[1:], strict=True)), {name: Circuit() for name in names})

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every arm's slot, stable's first."""
        return (self.stable, *self.candidates.values())

    @cached_property
    def personal(self) -> dict[str, dict[str, str]]:
        """The personal columns of each table that any arm knows, see `ModelSpec.personal`."""
        found: dict[str, dict[str, str]] = {}
        for slot in self.slots:
            for table, kinds in slot.predictor.spec.personal.items():
                found[table] = {**found.get(table, {}), **kinds}
        return found

    def slot(self, arm: str) -> Slot:
        """The slot of an arm; stable's where there is none of that name."""
        return self.candidates.get(arm, self.stable)


class Slots:
    """The versions of one replica."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._loaded: dict[str, Slot] = {}
        self._live: Live | None = None
        self._loading = threading.Lock()

    @property
    def loaded(self) -> dict[str, Slot]:
        """The slots by version."""
        return dict(self._loaded)

    @property
    def epoch(self) -> int:
        """The epoch of the route in force, 0 before the first."""
        return self._live.route.epoch if self._live else 0

    @property
    def live(self) -> Live | None:
        """The route in force and its slots, None before the first."""
        return self._live

    def require(self) -> Live:
        """The route in force. Raises Unavailable before the first."""
        if self._live is None:
            raise Unavailable("no version is live yet", "a deployed route", "wait until /v2/health/ready answers 200")
        return self._live

    def stage(self, version: str, manifest: str) -> Slot:
        """Load a version beside the others: verify its signature and every byte, check the golden rows. A loaded one is returned as it is.

        Raises NotFound, Untrusted or Corrupt, leaving the others as they were; Conflict when the name is loaded with other files.
        """
        with self._loading:
            found = self._loaded.get(version)
            if found is not None and found.manifest == manifest:
                return found
            if found is not None:
                raise Conflict(
                    f"{version} is loaded from {found.manifest[:12]}",
                    f"not {manifest[:12]}",
                    "a version never changes its files",
                )
            begun = monotonic()
            # Loading runs the golden rows, which warms it up.
            predictor = Predictor.load(files.fetch(self._artifacts, manifest))
            _ = predictor.steady  # measured now, not within a request
            slot = self._loaded[version] = Slot(manifest, predictor, monotonic() - begun, monotonic())
            return slot

    def activate(self, route: Route) -> int:
        """Put `route` in force, unless a newer one is. Its versions must be staged. Returns the epoch in force afterwards.

        Raises Unavailable when a version is not loaded, InvalidSettings when it has personal columns and there is no secret. Called on the replica's event loop only.
        """
        if route.epoch > self.epoch:
            live = Live.of(route, [self._staged(arm) for arm in route.arms])
            if any("keyed" in kinds.values() for kinds in live.personal.values()):
                personal.secret()
            self._live = live
        self.drain()
        return self.epoch

    def _staged(self, arm: Arm) -> Slot:
        slot = self._loaded.get(arm.version)
        if slot is None or slot.manifest != arm.manifest:
            raise Unavailable(f"{arm.version} is not loaded", "a staged version", "stage it before the route is activated")
        slot.served = True
        return slot

    def drain(self) -> None:
        """Forget the versions that the route no longer names and no request uses, and those that were staged for nothing."""
        named = {arm.version for arm in self._live.route.arms} if self._live is not None else set()
        for name, slot in list(self._loaded.items()):
            waits = not slot.served and monotonic() - slot.at < STAGED_SECONDS
            if name not in named and not slot.in_flight and not waits:
                self._loaded.pop(name, None)
