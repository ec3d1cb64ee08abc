"""One replica behind the HTTP: what it holds and how it follows the route; labels and fresh rows. A request's way is answering.py's; knows neither ASGI nor Ray."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ct.data import labels, predictions
from ct.data.columns import from_rows
from ct.errors import Corrupt, CtError, InvalidRequest, NotFound, Unavailable
from ct.features import online
from ct.registry import flags, held, pinned, routes
from ct.registry.flags import Flags
from ct.registry.held import Held
from ct.registry.routes import STABLE, Arm, Route
from ct.serving import answers, scrape, veil
from ct.serving.answering import Answering
from ct.serving.answers import Answer
from ct.serving.exposition import Sample
from ct.serving.passes import said
from ct.serving.runtime import ONNX, Wanted
from ct.serving.slots import Live, Reach, Slots
from ct.serving.telemetry import Telemetry
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New
from ct.store.signing import Keys

POLL_SECONDS, HEED_SECONDS = 1.0, 0.25
LOAD_SECONDS, RETRY_SECONDS = 5.0, 10.0
"""How long a polled route waits for its candidates to load, and how long until one that failed is tried again."""
CHECK_SECONDS = 2.0
PLATFORMS = {"onnx": "onnxruntime", "torch": "pytorch", "aot": "pytorch_aotinductor"}
"""What the Open Inference Protocol's metadata calls the runtimes."""


class Replica:
    """The versions, the prediction log and the online store of one replica. All methods run on its event loop."""

    def __init__(self, settings: Settings, endpoint: str, *, reach: Reach | None = None) -> None:
        self.settings, self.endpoint = settings, endpoint
        self.name = self.known_as = secrets.token_hex(4)
        self.siblings: scrape.Siblings | None = None
        store = Artifacts(settings.place("artifacts"), Keys(settings.trusted_keys))
        self.slots = Slots(
            store,
            fetch=lambda manifest: pinned.fetch(settings, store, manifest),
            reach=reach,
            most_bytes=settings.max_model_bytes,
            wanted=Wanted.of(settings),
        )
        self.telemetry = Telemetry(endpoint)
        self._journal: Journal | None = None
        self._pinned_epoch, self._flags_seen = 0, -1
        self._order: tuple[int, int, int] | None = None
        self._told: set[str] = set()
        self._online = online.opened(settings)
        self._inbox = predictions.Inbox(settings.inbox, self.name)
        self.answering = Answering(
            endpoint,
            self.slots,
            telemetry=self.telemetry,
            store=self._online,
            inbox=self._inbox,
            max_rows=settings.max_rows,
        )
        self.flags = Flags()
        self.converge()

    # -- control

    def converge(self) -> int:
        """Bring this replica to the journal's route, if it is newer; to this node's pinned one when the journal does not answer.

        Only stable must be loadable: a candidate that is not gets nothing here. Returns the epoch in force.
        """
        self._heed()
        try:
            route = self._newest()
            self._read_flags()
        except CtError as error:
            self.telemetry.fault(type(error).__name__)
            route = self._pinned()
            self._recall_flags()
        if route is not None and route.epoch > self.slots.epoch:
            if route.stable.app:
                return self.slots.epoch  # it is asked through the event loop, which does not run yet: polling does it
            self.stage(route.stable.version, route.stable.manifest, route.stable.app)
            self._load([arm for arm in route.arms[1:] if not arm.app])
            self.activate(route)
            self._pin()
        return self.slots.epoch

    def _newest(self) -> Route | None:
        """The journal's route if it is newer than the one in force. Raises Unavailable."""
        if self._journal is None:
            self._journal = Journal(self.settings.database)
        if self._journal.version(routes.stream(self.endpoint)) <= self.slots.epoch:
            return None
        return routes.current(self._journal, self.endpoint)

    def _read_flags(self) -> None:
        """Obey the journal's flags, if they have changed. Raises Unavailable."""
        assert self._journal is not None, "the route was read before"
        version = self._journal.version(flags.stream(self.endpoint))
        if version == self._flags_seen:
            return
        self.flags, self._flags_seen = flags.current(self._journal, self.endpoint), version
        try:
            pinned.pin_flags(self.settings, self.endpoint, self.flags)
        except (CtError, OSError) as error:  # a full disk stops no answer
            self.telemetry.fault(type(error).__name__)

    def _recall_flags(self) -> None:
        try:
            self.flags = pinned.pinned_flags(self.settings, self.endpoint)
        except CtError as error:  # nobody knows what was switched off
            self.telemetry.fault(type(error).__name__)
            self.flags = Flags(canary=False, shadow=False)

    @property
    def flags(self) -> Flags:
        """The flags in force here, see registry/flags.py."""
        return self._flags

    @flags.setter
    def flags(self, new: Flags) -> None:
        self._flags = self.answering.flags = new

    def _pinned(self) -> Route | None:
        try:
            return pinned.pinned(self.settings, self.endpoint)
        except CtError as error:
            self.telemetry.fault(type(error).__name__)
            return None

    def _pin(self) -> None:
        route = self.slots.route
        if route is None or route.epoch == self._pinned_epoch:
            return
        try:
            pinned.pin(self.settings, route)
            self._pinned_epoch = route.epoch
        except (CtError, OSError) as error:  # a full disk stops no answer; it is tried again
            self.telemetry.fault(type(error).__name__)

    def stage(self, version: str, manifest: str, app: str = "") -> None:
        """Load a version beside the others, see `Slots.stage`. What cannot be loaded is journaled, once for each manifest and cause."""
        try:
            self.slots.stage(version, manifest, app)
        except Unavailable:
            raise  # nobody's fault: it is asked again
        except Exception as error:
            try:
                self._refused(version, manifest, error)
            except CtError as fault:
                self.telemetry.fault(type(fault).__name__)
            if isinstance(error, CtError):
                raise
            found = f"{version} cannot be loaded: {said(error)}"
            raise Corrupt(found, "files that this machine can run", "see the candidate's code; train it again") from error

    def _tell(self) -> None:
        """Journal which runtime holds a version, once for each, where it is not what a reader expects. Raises Unavailable."""
        for slot in self.slots.loaded.values():
            wanted, model = self.settings.runtime, slot.predictor
            if slot.manifest not in self._told and self._journal is not None:
                if (model.runtime, wanted) != (ONNX, ONNX):
                    known = Held(model.version, slot.manifest, model.runtime, wanted, model.instead)
                    held.tell(self._journal, self.endpoint, known)
                self._told.add(slot.manifest)

    def _refused(self, version: str, manifest: str, error: Exception) -> None:
        if self._journal is None:
            return
        stream = f"audit/{self.endpoint}"
        kind = "ArtifactRefused" if isinstance(error, Corrupt) else "LoadFailed"
        found = error.found if isinstance(error, CtError) else said(error)
        told = {"version": version, "manifest": manifest, "error": type(error).__name__, "found": found}
        if not any(event.data["manifest"] == manifest for event in self._journal.read(stream, types=[kind])):
            self._journal.append(stream, [New(kind, told | {"replica": self.name})])

    def activate(self, route: Route) -> int:
        """Put a route in force whose stable version is staged; candidates that are not follow. Returns the epoch in force."""
        if self.answering.ids is None:
            self.answering.ids = predictions.PredictionIds(route.key, self.name)
        return self.slots.activate(route, partly=True)

    def _load(self, arms: Sequence[Arm]) -> None:
        """Load what can be loaded of `arms`. A failure is told, and tried again after a while."""
        for arm in arms:
            try:
                self.stage(arm.version, arm.manifest, arm.app)
            except Exception as error:  # a candidate's fault costs stable nothing
                self.telemetry.fault(type(error).__name__)

    async def keep_converging(self) -> None:
        """Poll the journal for a route that a broadcast did not bring, and for flags. A journal that does not answer changes nothing.

        Loading never holds up a route whose versions are there: stable first, then the switch, then candidates beside it.
        """
        loading: asyncio.Task[None] | None = None
        rest = 0.0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                try:
                    route = await asyncio.to_thread(self._newest)
                    await asyncio.to_thread(self._read_flags)
                except CtError as error:
                    self.telemetry.fault(type(error).__name__)
                    route = self._pinned() if self.slots.live is None else None
                if route is not None:
                    stable = route.stable
                    await asyncio.to_thread(self.stage, stable.version, stable.manifest, stable.app)
                    if any(arm.version not in self.slots.loaded for arm in route.arms) and not (loading and not loading.done()):
                        # Most candidates load within this; a longer one is waited for beside the switch.
                        loading, rest = self._begin(route.arms[1:]), time.monotonic() + RETRY_SECONDS
                        await asyncio.wait([loading], timeout=LOAD_SECONDS)
                    self.activate(route)
                if self.slots.missing and (loading is None or loading.done()) and time.monotonic() > rest:
                    loading, rest = self._begin(self.slots.missing), time.monotonic() + RETRY_SECONDS
                self.slots.refresh()
                self.slots.drain()
                await asyncio.to_thread(self._pin)
                await asyncio.to_thread(self._tell)
            except Exception as error:  # the loop is a repair and must outlive any fault; what it met is shown by /metrics
                self.telemetry.fault(type(error).__name__)

    def _begin(self, arms: Sequence[Arm]) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.to_thread(self._load, arms))

    async def keep_heeding(self) -> None:
        """Look for an order on this node's disk to stop candidates. It needs no database, no store and no thread."""
        while True:
            await asyncio.sleep(HEED_SECONDS)
            try:
                self._heed()
            except Exception as error:  # the loop must outlive any fault: it is the last way to stop a candidate
                self.telemetry.fault(type(error).__name__)

    def _heed(self) -> None:
        try:
            stat = pinned.order_place(self.settings, self.endpoint).stat()
        except OSError:
            seen = None
        else:
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._order:
            return
        try:
            order = pinned.offline(self.settings, self.endpoint) if seen else None
        except CtError as error:  # half an order may have been meant to stop what runs
            self.telemetry.fault(type(error).__name__)
            self.slots.halt(self.slots.epoch)
            return  # it is read again at the next look
        self.slots.halt(order.epoch if order else 0)
        self._order = seen

    async def check(self) -> None:
        """Can it answer? Stable's first golden row is scored as a request's row is, and the log's writer must say that it runs, both in time.

        A replica without a route is well, only not ready: to start it anew would not help. Raises Corrupt, Unavailable, or what the runtime says.
        """
        live = self.slots.live
        if live is None:
            return
        if live.stable.predictor.near:
            live.stable.predictor.check(1)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await asyncio.wrap_future(self._inbox.submit([]))
        except TimeoutError:
            raise _silent() from None
        except CtError:
            if self._inbox.closed:
                raise _silent() from None
            # a full disk is told to who asks; another replica would write to the same

    async def close(self) -> None:
        """Put what is logged on disk. Nothing may be asked any more."""
        await asyncio.to_thread(self._inbox.close)

    async def metrics(self) -> str:
        """What all replicas of the endpoint count and hold, in the Prometheus text format, see scrape.py."""
        _, own = await self.samples()
        others = await self.siblings.ask() if self.siblings is not None else {}
        least, _ = self.settings.replica_range
        return scrape.text(self.endpoint, {self.known_as: own, **others}, least)

    async def samples(self) -> tuple[str, list[Sample]]:
        """How Serve calls this replica, and its counters, what is in force, and how new what the online store holds is."""
        try:
            fresh = self._online.freshness() if self._online.near else await asyncio.to_thread(self._online.freshness)
        except CtError as error:
            self.telemetry.fault(type(error).__name__)
            fresh = ()
        info: Sample = ("ct_replica_info", {"endpoint": self.endpoint, "name": self.name}, 1)
        return self.known_as, [info, *self.telemetry.samples(self.slots, fresh)]

    def state(self) -> dict[str, Any]:
        """What this replica holds."""
        live = self.slots.live
        return {
            "replica": self.name,
            "pid": os.getpid(),
            "epoch": self.slots.epoch,
            "shown": {STABLE: live.stable.predictor.version, **_shown(live)} if live else {},
            "bytes": self.slots.size,
            "versions": sorted(self.slots.loaded),
            "runtimes": {version: slot.predictor.runtime for version, slot in self.slots.loaded.items()},
            "instead": {version: why for version, slot in self.slots.loaded.items() if (why := slot.predictor.instead)},
            "in_flight": {version: slot.in_flight for version, slot in self.slots.loaded.items()},
            "circuit_open": bool(live and any(circuit.open for circuit in live.circuits.values())),
            "circuits": {arm: circuit.open for arm, circuit in live.circuits.items() if circuit.limit} if live else {},
        }

    # -- data

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, unit: str = "", force: str = "", version: str = "") -> Answer:
        """Score rows, log them, answer; see `Answering.predict`."""
        return await self.answering.predict(rows, unit=unit, force=force, version=version)

    async def label(self, entries: object) -> int:
        """Log posted ground truth durably. Returns the number of labels. Raises InvalidRequest."""
        live = self.slots.require()
        assert self.answering.ids is not None, "a live route has set the ids"
        stable = live.stable.predictor
        above = stable.spec.label["above"]
        records = labels.read_labels(entries, ids=self.answering.ids, objective=stable.objective, above=above, now_us=_now())
        await asyncio.wrap_future(self._inbox.submit(records))
        self.telemetry.labelled(len(records))
        return len(records)

    async def observe(self, table: str, rows: object) -> int:
        """Store fresh rows of a source table for the features. Returns the new entries. Raises InvalidRequest or NotFound."""
        live = self.slots.require()
        spec = live.stable.predictor.spec
        if table not in spec.observe:
            raise NotFound(f"no feature reads a table {table!r}", f"one of {sorted(spec.observe)}", "check the path")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidRequest("rows is no list of objects", "a list of rows", "send {'rows': [{...}]}", field="rows")
        known, rows = spec.observe[table], veil.of_table(live.personal, table, rows)
        for at, row in enumerate(rows):
            if unknown := sorted(set(row) - set(known)):
                raise InvalidRequest(
                    f"row {at} has the unknown field {unknown[0]!r}",
                    f"fields {sorted(known)}",
                    "leave it out",
                    field=f"{at}.{unknown[0]}",
                )
        lookups = tuple(dict.fromkeys(found for slot in self.slots.loaded.values() for found in slot.predictor.lookups))
        needed = dict.fromkeys(name for lookup in lookups if lookup.table == table for name in lookup.reads)
        kinds = {name: known[name] for name in needed}
        columns = from_rows([{name: row[name] for name in kinds if name in row} for row in rows], kinds)
        return await asyncio.to_thread(self._online.push, lookups, table, columns) if rows and kinds else 0

    def metadata(self) -> dict[str, Any]:
        """The model's inputs and outputs, in the words of the Open Inference Protocol v2."""
        spec = self.slots.require().stable.predictor.spec
        types = {"number": "FP64", "text": "BYTES", "time": "BYTES"}
        return {
            "name": self.endpoint,
            "versions": sorted(self.slots.loaded),
            "platform": PLATFORMS[self.slots.require().stable.predictor.runtime],
            "inputs": [{"name": name, "datatype": types[kind], "shape": [-1]} for name, kind in spec.request.items()],
            "outputs": answers.outputs(self.slots.require().stable.predictor.objective),
        }


def _shown(live: Live) -> dict[str, str]:
    return {name: slot.predictor.version for name, slot in live.candidates.items()}


def _silent() -> Unavailable:
    return Unavailable("the prediction log's writer does not answer", "a writer that runs", "see the disk")


def _now() -> int:
    return time.time_ns() // 1000
