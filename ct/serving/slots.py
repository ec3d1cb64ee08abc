"""Model versions loaded side by side in one replica: stage, activate, drain. This is the in-place upgrade; no replica restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import monotonic

from ct.data import personal
from ct.errors import Conflict, Unavailable
from ct.registry import files
from ct.registry.routes import Arm, Route, Share, arm_name
from ct.serving.router import Circuit
from ct.serving.runtime import AOT, USUAL, Predictor, Wanted, prepare
from ct.store.artifacts import Artifacts

STAGED_SECONDS = 900.0
"""How long a staged version waits for its route."""
Fetch = Callable[[str], Mapping[str, bytes]]
"""The verified files of a manifest."""
PROVEN = 20
"""A candidate that has answered so many passes in time, one after the other, goes stable's way: beside it, in a thread of its own, it would be
measured slower than it is. One that fails, or takes long, is watched, in a thread with a deadline, until it is proven again."""

Reach = Callable[[str, Mapping[str, bytes]], Predictor]
"""The application of that name as what predicts for a version with these files."""


@dataclass
class Slot:
    """A loaded version. `in_flight` counts the requests that use it now; `served` says that a route has named it.

    `size` is its memory in bytes as measured when it was loaded, `app` the Serve application that holds it when this process does not.
    `proven` are the passes that it has answered in time, one after the other; its golden rows count as enough.
    """

    manifest: str
    predictor: Predictor
    seconds: float
    at: float
    app: str = ""
    size: int = 0
    in_flight: int = 0
    served: bool = False
    proven: int = PROVEN


@dataclass(frozen=True)
class Live:
    """What answers now: one immutable reference that each request reads once. `candidates` and `circuits` are by the arm's name."""

    route: Route
    stable: Slot
    candidates: Mapping[str, Slot] = field(default_factory=dict)
    circuits: Mapping[str, Circuit] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(route: Route, slots: Sequence[Slot], circuits: Mapping[str, Circuit] | None = None) -> Live:
        """A route with the slots of its arms, stable's first. `circuits` are those of the same epoch, if it was in force before."""
        names = [arm_name(at) for at in range(len(route.candidates))]
        held = dict(zip(names, slots[1:], strict=True))
        made = {name: (circuits or {}).get(name) or Circuit() for name in names}
        # Stable stands in for a candidate that is not here: nobody, not even who asks for it, gets that under the candidate's name.
        made |= {name: Circuit(limit=0) for name, slot in held.items() if slot is slots[0]}
        return Live(route, slots[0], held, made)

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
    """The versions of one replica. `fetch` gives their files, from `artifacts` where it is not said; `reach` knows those that run elsewhere.

    Together they may take `most_bytes` of memory, any number when 0. They run on the `wanted` runtime, where it can hold them.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        *,
        fetch: Fetch | None = None,
        reach: Reach | None = None,
        most_bytes: int = 0,
        wanted: Wanted = USUAL,
    ) -> None:
        self._fetch: Fetch = fetch or (lambda manifest: files.fetch(artifacts, manifest))
        self.reach = reach
        self._most, self._wanted = most_bytes, wanted
        self._loaded: dict[str, Slot] = {}
        self._route: Route | None = None
        self._live: Live | None = None
        self._halted = 0
        self._loading = threading.Lock()

    @property
    def loaded(self) -> dict[str, Slot]:
        """The slots by version."""
        return dict(self._loaded)

    @property
    def size(self) -> int:
        """The memory of all slots, in bytes."""
        return sum(slot.size for slot in self.loaded.values())

    @property
    def epoch(self) -> int:
        """The epoch of the route in force, 0 before the first."""
        return self._route.epoch if self._route else 0

    @property
    def route(self) -> Route | None:
        """The route in force as it was decided; `live` may hold less of it, see `activate` and `halt`."""
        return self._route

    @property
    def live(self) -> Live | None:
        """What answers, None before the first route."""
        return self._live

    @property
    def missing(self) -> tuple[Arm, ...]:
        """The arms of the route in force that are not loaded here."""
        return tuple(arm for arm in (self._route.arms if self._route else ()) if self._found(arm) is None)

    def require(self) -> Live:
        """The route in force. Raises Unavailable before the first."""
        if self._live is None:
            raise Unavailable("no version is live yet", "a deployed route", "wait until /v2/health/ready answers 200")
        return self._live

    def stage(self, version: str, manifest: str, app: str = "") -> Slot:
        """Load a version beside the others: verify its signature and every byte, check the golden rows. A loaded one is returned as it is.

        Requests go on meanwhile, and so do changes of the route among loaded versions. Raises NotFound, Untrusted or Corrupt, leaving the
        others as they were; Unavailable when there is no room for it; Conflict when the name is loaded with other files.
        """
        arm = Arm(version, manifest, app)
        if (found := self._held(arm)) is not None:
            found.at = monotonic()  # it waits for its route anew, also where an earlier one named it
            found.served = found.served and self._live is not None and any(found is slot for slot in self._live.slots)
            return found
        if self._wanted.runtime == AOT and not app:
            prepare(self._fetch(manifest), self._wanted)
        with self._loading:
            if (found := self._held(arm)) is not None:
                return found
            slot = self._loaded[version] = self._load(arm)
            return slot

    def _held(self, arm: Arm) -> Slot | None:
        found = self._loaded.get(arm.version)
        if found is not None and found.manifest != arm.manifest:
            raise Conflict(
                f"{arm.version} is loaded from {found.manifest[:12]}",
                f"not {arm.manifest[:12]}",
                "a version never changes its files",
            )
        if found is not None and found.app != arm.app:
            raise Conflict(
                f"{arm.version} is held {'by ' + found.app if found.app else 'in this process'}",
                f"held {'by ' + arm.app if arm.app else 'in this process'}",
                "let it drain first: take it out of the route",
            )
        return found

    def _load(self, arm: Arm) -> Slot:
        begun, made = monotonic(), self._fetch(arm.manifest)
        if arm.app:
            if self.reach is None:
                raise Unavailable(f"{arm.version} runs as {arm.app}", "a replica within Serve", "deploy the endpoint")
            return Slot(arm.manifest, self.reach(arm.app, made), monotonic() - begun, monotonic(), arm.app)
        self._require_room(arm.version, sum(map(len, made.values())))
        before = _resident()
        predictor = Predictor.load(made, wanted=self._wanted)
        predictor.warm()
        _ = predictor.steady  # measured now, not within a request
        # Others allocate meanwhile too: no less than the graph, which the session keeps, or the weights.
        size = max(_resident() - before, len(made.get(files.ONNX, made[files.WEIGHTS])))
        self._require_room(arm.version, size)
        return Slot(arm.manifest, predictor, monotonic() - begun, monotonic(), size=size)

    def _require_room(self, version: str, size: int) -> None:
        if self._most and self.size + size > self._most:
            held = {name: slot.size >> 20 for name, slot in self.loaded.items()}
            raise Unavailable(
                f"{version} needs {size / (1 << 20):.1f} MiB beside {held} MiB",
                f"at most {self._most / (1 << 20):.1f} MiB of versions in a replica (max_model_bytes)",
                "raise the setting, or let versions drain that are no longer needed",
            )

    def activate(self, route: Route, *, partly: bool = False) -> int:
        """Put `route` in force, unless a newer one is. Its versions must be staged. Returns the epoch in force afterwards.

        With `partly` only stable must be; candidates that are not get nothing here, until `refresh` finds them. Raises Unavailable when
        a version is not loaded, InvalidSettings when it has personal columns and there is no secret. Called on the replica's event loop only.
        """
        if route.epoch > self.epoch:
            for arm in route.arms[: 1 if partly else None]:
                if self._found(arm) is None:
                    raise Unavailable(
                        f"{arm.version} is not loaded", "a staged version", "stage it before the route is activated"
                    )
            self._show(route)
        self.drain()
        return self.epoch

    def refresh(self) -> None:
        """Let the route in force have the candidates that were loaded after it. Called on the replica's event loop only."""
        if self._route is not None and self._live is not None and self._live.route is not self._route:
            self._show(self._route)

    def halt(self, epoch: int) -> None:
        """Give candidates nothing in routes up to `epoch`; 0 lets all have their share. Called on the replica's event loop only."""
        if epoch != self._halted:
            self._halted = epoch
            if self._route is not None:
                self._show(self._route)

    def _found(self, arm: Arm) -> Slot | None:
        slot = self._loaded.get(arm.version)
        return slot if slot is not None and (slot.manifest, slot.app) == (arm.manifest, arm.app) else None

    def _show(self, route: Route) -> None:
        """Make `route` what answers, as far as its candidates are here and not halted: what they do not get goes to stable, and the log says so."""
        held = {arm.version: slot for arm in route.arms if (slot := self._found(arm)) is not None}
        shares: list[Share] = []
        for share in route.candidates if route.epoch > self._halted else ():
            # A candidate's name is its place, so one that misses keeps its place as long as another follows, which keeps its users.
            away = replace(share, weight=0, shadow=False, gap=share.weight + share.gap)
            shares.append(share if share.arm.version in held else away)
        while shares and shares[-1].arm.version not in held:
            shares.pop()
        stable = held[route.stable.version]
        slots = [stable, *(held.get(share.arm.version, stable) for share in shares)]
        whole = len(shares) == len(route.candidates) and all(share.arm.version in held for share in shares)
        shown = route if whole else replace(route, candidates=tuple(shares))
        same = self._live if self._live is not None and self._live.route.epoch == route.epoch else None
        before = {name: circuit for name, circuit in same.circuits.items() if circuit.limit} if same is not None else None
        live = Live.of(shown, slots, before)
        if any("keyed" in kinds.values() for kinds in live.personal.values()):
            personal.secret()
        for slot in held.values():
            slot.served = True
        self._route, self._live = route, live

    def drain(self) -> None:
        """Forget the versions that the route no longer names and no request uses, and those that were staged for nothing."""
        named = {arm.version for arm in self._route.arms} if self._route is not None else set()
        for name, slot in list(self._loaded.items()):
            waits = not slot.served and monotonic() - slot.at < STAGED_SECONDS
            if name not in named and not slot.in_flight and not waits:
                self._loaded.pop(name, None)


def _resident() -> int:
    """The memory of this process in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
