"""One replica behind the HTTP: what it holds and how it follows the route; labels and fresh rows. A request's way is answering.py's; knows neither ASGI nor Ray."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ct.data import labels, predictions
from ct.data.columns import from_rows
from ct.errors import Corrupt, CtError, InvalidRequest, NotFound
from ct.features import online
from ct.registry import routes
from ct.registry.routes import Route
from ct.serving import answers, scrape, veil
from ct.serving.answering import Answering
from ct.serving.answers import Answer
from ct.serving.exposition import Sample
from ct.serving.slots import Slots
from ct.serving.telemetry import Telemetry
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New
from ct.store.signing import Keys

POLL_SECONDS = 1.0


class Replica:
    """The versions, the prediction log and the online store of one replica. All methods run on its event loop."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        self.settings, self.endpoint = settings, endpoint
        self.name = self.known_as = secrets.token_hex(4)
        self.siblings: scrape.Siblings | None = None
        self.slots = Slots(Artifacts(settings.place("artifacts"), Keys(settings.trusted_keys)))
        self.telemetry = Telemetry(endpoint)
        self._journal = Journal(settings.database)
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
        self.converge()

    # -- control

    def converge(self) -> int:
        """Bring this replica to the journal's route, if it is newer. Returns the epoch in force."""
        if self._journal.version(routes.stream(self.endpoint)) > self.slots.epoch:
            route = routes.current(self._journal, self.endpoint)
            if route is not None:
                for arm in route.arms:
                    self.stage(arm.version, arm.manifest)
                self.activate(route)
        return self.slots.epoch

    def stage(self, version: str, manifest: str) -> None:
        """Load a version beside the others, see `Slots.stage`. Files that are refused are journaled, once for each manifest."""
        try:
            self.slots.stage(version, manifest)
        except Corrupt as error:
            try:
                self._refused(version, manifest, error)
            except CtError as fault:
                self.telemetry.fault(type(fault).__name__)
            raise

    def _refused(self, version: str, manifest: str, error: Corrupt) -> None:
        stream = f"audit/{self.endpoint}"
        said = {"version": version, "manifest": manifest, "error": type(error).__name__, "found": error.found}
        if not any(event.data["manifest"] == manifest for event in self._journal.read(stream, types=["ArtifactRefused"])):
            self._journal.append(stream, [New("ArtifactRefused", said | {"replica": self.name})])

    def activate(self, route: Route) -> int:
        """Put a route in force whose versions are staged. Returns the epoch in force."""
        if self.answering.ids is None:
            self.answering.ids = predictions.PredictionIds(route.key, self.name)
        return self.slots.activate(route)

    async def keep_converging(self) -> None:
        """Poll the journal for a route that a broadcast did not bring. A journal that does not answer changes nothing."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                version = await asyncio.to_thread(self._journal.version, routes.stream(self.endpoint))
                if version > self.slots.epoch:
                    route = await asyncio.to_thread(routes.current, self._journal, self.endpoint)
                    if route is not None:
                        for arm in route.arms:
                            await asyncio.to_thread(self.stage, arm.version, arm.manifest)
                        self.activate(route)
                self.slots.drain()
            except Exception as error:  # the loop is a repair and must outlive any fault; what it met is shown by /metrics
                self.telemetry.fault(type(error).__name__)

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
            "epoch": self.slots.epoch,
            "versions": sorted(self.slots.loaded),
            "in_flight": {version: slot.in_flight for version, slot in self.slots.loaded.items()},
            "circuit_open": bool(live and any(circuit.open for circuit in live.circuits.values())),
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
            "platform": "onnxruntime",
            "inputs": [{"name": name, "datatype": types[kind], "shape": [-1]} for name, kind in spec.request.items()],
            "outputs": answers.outputs(self.slots.require().stable.predictor.objective),
        }


def _now() -> int:
    return time.time_ns() // 1000
