"""Carries decisions out. The only place that starts training or changes a route; every step is safe to repeat."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ct.clock import Clock, SystemClock
from ct.control import decide, ending, filling, retrain, rollouts, runs, turning, watching
from ct.control.arriving import Looks
from ct.control.judging import Report, judge
from ct.control.place import Place, Step
from ct.control.rows import rows
from ct.control.sweeping import Swept, sweep
from ct.data.arriving import Reader
from ct.data.ingest import Outcome, ingest
from ct.data.tables import Warehouse
from ct.errors import Conflict, CtError, NotFound, Unavailable
from ct.features import online
from ct.monitoring.alerts import Alert, send
from ct.pipeline import Pipeline, Table
from ct.registry import files, routes, versions
from ct.registry.routes import Route
from ct.rollout import state
from ct.rollout.state import Rollout
from ct.serving.client import Serving
from ct.settings import Settings, Workers
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from ct.store.leases import Held
from ct.store.signing import Keys


def _silent(_: str) -> None: ...


class Actor:
    """One project's hands: its pipeline, its stores and, once needed, its Ray cluster and endpoint."""

    def __init__(self, pipeline: Pipeline, settings: Settings, *, clock: Clock | None = None, actor: str = "") -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.clock = clock or SystemClock()
        self.journal = Journal(settings.database, clock=self.clock, actor=actor or os.environ.get("USER", "ct"))
        self.artifacts = Artifacts(settings.place("artifacts"), Keys(settings.trusted_keys))
        self.place = Place(pipeline, settings, self.journal, self.artifacts)
        self.looks = Looks(self)
        self._committed = 0.0
        self._connecting = threading.Lock()
        self._inside = False
        self._fault: CtError | None = None

    @cached_property
    def _reader(self) -> Reader:
        return Reader()

    def close(self) -> None:
        """Give connections back. The endpoint and a local Ray that serves stay up."""
        if "_reader" in vars(self):
            self._reader.close()
        self.journal.close()

    @cached_property
    def warehouse(self) -> Warehouse:
        """The Iceberg tables."""
        return Warehouse(self.settings)

    @cached_property
    def serving(self) -> Serving:
        """The endpoint's control side, on the cluster that serves."""
        self.ensure_ray()
        return Serving(self.settings, self.pipeline.name)

    def ensure_ray(self) -> None:
        """Connect to the cluster of the settings, of the job, or that ct started here; else start Ray in this process."""
        import ray

        with self._connecting:
            if self._fault is not None:
                raise self._fault
            if not ray.is_initialized():
                self._connect()

    def start_ray(self) -> None:
        """Make sure that a cluster runs which outlives this process: the settings' or job's own, else one that ct starts on this machine."""
        with self._connecting:
            self._start()

    def start_ray_soon(self) -> None:
        """As `start_ray`, without waiting, and the process that trains as well. Whoever needs Ray before then waits for it."""
        self._connecting.acquire()  # given back by the thread, so that nobody connects elsewhere meanwhile
        threading.Thread(target=self._start_behind, daemon=True).start()

    def _start_behind(self) -> None:
        from ct.training import warm

        try:
            self._start()
            warm.start(self.settings.workers)
        except CtError as error:
            self._fault = error
        finally:
            self._connecting.release()

    def _start(self) -> None:
        import ray

        from ct.serving import local

        if not (self.settings.ray_address or os.environ.get("RAY_ADDRESS")):
            address = local.start(self.settings)
            # Within this process, or of a head that was killed.
            if self._inside or (ray.is_initialized() and not local.joined(address)):
                local.leave()
                vars(self).pop("serving", None)
                self._inside = False
        if not ray.is_initialized():
            self._connect()

    def _connect(self) -> None:
        import ray

        from ct.serving import local

        address = self.settings.ray_address or os.environ.get("RAY_ADDRESS") or local.address(self.settings)
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="ct")
        else:
            self._inside = True
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=400_000_000)

    def carry_out(self, action: decide.Action) -> str:
        """Do one decided action and say in a line what came of it, empty when nothing did."""
        match action:
            case decide.Reconcile():
                return self.reconcile()
            case decide.Judge():
                return self.judge()
            case decide.Ingest(arrival):
                return self.looks.take(arrival)
            case decide.CheckDrift(shard):
                found = watching.check(self.place, shard)
                return f"drift of {found['shard']}: {', '.join(found['drifted'][:6]) or 'none'} {found['cause']}".rstrip()
            case decide.StartRun(cause):
                return f"run {self.start_run(cause).id} begins: {cause}"
            case decide.Train(run):
                try:
                    version = self.train(run)
                except Held:  # a `ct train` elsewhere: it is waited for
                    return ""
                return f"{version.name}: verdict {version.verdict}, {'; '.join(version.reasons[:1])}"
            case decide.Deploy(version):
                return f"{self.deploy(version.name).stable.version} is served"
            case decide.StartRollout(version):
                return f"rollout {self.start_rollout(version.name).id} of {version.name} begins"

    # -- data

    def table(self, name: str) -> Table:
        """The declared table. Raises NotFound naming the declared ones."""
        for table in self.pipeline.all_tables:
            if table.name == name:
                return table
        raise NotFound(
            f"the pipeline has no table {name!r}", f"one of {[t.name for t in self.pipeline.all_tables]}", "check the spelling"
        )

    def ingest(self, table: str, path: Path, *, origin: str = "file") -> Outcome:
        """Check a file and publish or quarantine it. A quarantine, a warning and rows set aside alert the table's owner.

        `origin` says where the file came from.
        """
        declared = self.table(table)
        outcome = ingest(
            path,
            declared,
            settings=self.settings,
            journal=self.journal,
            warehouse=self.warehouse,
            artifacts=self.artifacts,
            clock=self.clock,
            origin=origin,
            reader=self._reader,
        )
        if outcome.kind == "quarantined":
            found = "; ".join(reason.found for reason in outcome.reasons)
            self.alert("WARN", f"shard {outcome.shard} of {table} is quarantined", detail=found, owner=declared.owner)
        elif outcome.warnings:
            found = "; ".join(reason.found for reason in outcome.warnings)
            self.alert(
                "WARN", f"shard {outcome.shard} of {table} is published with a warning", detail=found, owner=declared.owner
            )
        if outcome.kind == "published" and online.in_use(self.settings):
            self.materialize()
        return outcome

    def materialize(self, *, since: int | None = None, on_step: Step = _silent) -> int:
        """Bring the online store to what has been published: see `filling.materialize`. Returns the rows stored."""
        return filling.materialize(self.place, since=since, on_step=on_step)

    def commit_predictions(self, *, force: bool = False) -> int:
        """Move the prediction log's inbox into its table, once a minute at most and never during a rollout. Returns the rows moved."""
        from ct.data import predictions

        now = self.clock.now().timestamp()
        if not force and (now - self._committed < 60 or state.active(self.journal, self.pipeline.name)):
            return 0
        self._committed = now
        return predictions.commit(self.settings, self.warehouse)

    # -- training

    def run_inputs(self) -> dict[str, Any]:
        """What a run started now would read."""
        return retrain.inputs(self.place)

    def start_run(self, cause: str, **more: Any) -> runs.Run:
        """Freeze the inputs of a new run, `more` (seeds, accepts) among them."""
        return retrain.start(self.place, cause=cause, more=more)

    def train(
        self, run: runs.Run, *, workers: Workers | None = None, on_step: Step = _silent, **changed: Any
    ) -> versions.Version:
        """Carry a run to its version and verdict. A run that cannot give a model is recorded as failed, then raises."""
        self.ensure_ray()
        count = self.settings.workers if workers is None else workers
        return retrain.carry_out(self.place, run, workers=count, gpu=self.gpu(), on_step=on_step, **changed)

    def sweep(self, chosen: Any, *, parallel: int, **told: Any) -> Swept:
        """Search the pipeline's space as `chosen` says (see `sweeping.chooser`) and train the best setting whole."""
        self.ensure_ray()
        return sweep(self, chosen, parallel=parallel, **told)

    def evaluate(self, version: str) -> Report:
        """Score a version and the champion on the newest mature window. Changes nothing."""
        self.ensure_ray()
        known, inputs = versions.get(self.journal, self.pipeline.name, version), self.run_inputs()
        probe = runs.Run(
            id="probe",
            cause="",
            params={},
            seed=0,
            code="",
            pipeline="",
            started=self.clock.now(),
            **{key: inputs[key] for key in ("shards", "snapshots", "until")},
        )
        data = rows(self.place, probe, on_step=_silent)
        made = files.fetch(self.artifacts, known.manifest)
        return judge(self.place, made, data)

    def overrule(self, version: str, reason: str) -> None:
        """Clear a version that its gate did not pass. The journal keeps who and why."""
        versions.overrule(self.journal, self.pipeline.name, version, reason=reason, approvers=self.settings.approvers)

    def gpu(self) -> bool:
        """Has the cluster GPUs?"""
        import ray

        return bool(ray.cluster_resources().get("GPU", 0))

    # -- serving

    def deploy(self, version: str = "", *, on_step: Step = _silent) -> Route:
        """Start the endpoint. Its first version is `version` or the newest cleared one; afterwards the route is what the journal says."""
        route = routes.current(self.journal, self.pipeline.name)
        if route is not None and version and route.stable.version != version:
            raise Conflict(
                f"{route.stable.version} is served",
                "a first deployment",
                f"use `ct rollout start {version}` to change the version",
            )
        if route is None:
            arm = versions.arm(self._newest(version))
            route = routes.put(self.journal, routes.first(self.pipeline.name, arm), cause="first deployment")
        on_step("starting Ray")
        self.start_ray()
        self.materialize()
        on_step("starting the endpoint")
        self.serving.deploy()
        self._activate(route)
        return route

    def down(self) -> str:
        """Stop the local Ray that ct started, and the endpoint with it. A cluster of others that this process is connected to goes on."""
        from ct.serving import local

        vars(self).pop("serving", None)
        return "stopped" if local.stop(self.settings) else "nothing that ct started is running here"

    def served_epoch(self) -> int | None:
        """The lowest epoch among the replicas, None when the endpoint does not answer."""
        try:
            states = self.serving.state()
        except CtError:
            return None
        return min((state["epoch"] for state in states), default=None)

    def reconcile(self) -> str:
        """Bring the replicas to the route that the journal says."""
        route = self.route()
        if self.served_epoch() is None:
            self.deploy()
            return f"the endpoint was down and is up again at epoch {route.epoch}"
        self._activate(route)
        return f"replicas brought to epoch {route.epoch}"

    def route(self) -> Route:
        """The route in force. Raises NotFound before the first deployment."""
        route = routes.current(self.journal, self.pipeline.name)
        if route is None:
            raise NotFound(f"{self.pipeline.name!r} is not deployed", "a deployed endpoint", "run `ct deploy`")
        return route

    def stable_name(self) -> str:
        """The stable version's name."""
        return self.route().stable.version

    def change(self, route: Route, cause: str) -> Route:
        """Record a route, then make the replicas follow it. The one door through which traffic moves.

        Only versions that are new to the route are staged, so that a rollback waits for nothing.
        """
        loaded = self.route().arms
        for arm in route.arms:
            if arm not in loaded:
                self.serving.stage(arm.version, arm.manifest, arm.app)
        routes.put(self.journal, route, cause=cause)
        self.serving.activate(route)
        return route

    def _activate(self, route: Route) -> None:
        self.serving.stage(route.stable.version, route.stable.manifest, route.stable.app)
        for arm in route.arms[1:]:
            with suppress(Unavailable):  # a candidate that cannot be loaded gets nothing and keeps stable from nobody
                self.serving.stage(arm.version, arm.manifest, arm.app)
        self.serving.activate(route)

    def _newest(self, name: str) -> versions.Version:
        if name:
            return versions.get(self.journal, self.pipeline.name, name)
        cleared = [version for version in versions.all_versions(self.journal, self.pipeline.name) if version.cleared]
        if not cleared:
            raise NotFound("no version has passed its gate", "a cleared version", "run `ct train`, see `ct status`")
        return cleared[-1]

    # -- rollout

    @cached_property
    def _judge(self) -> turning.Judging:
        return turning.Judging(self)

    def start_rollout(self, version: str, *others: str, apart: bool = False, override: str = "") -> Rollout:
        """Give cleared versions their first traffic by the pipeline's plan; see `rollouts.start`."""
        found = [versions.get(self.journal, self.pipeline.name, name) for name in (version, *others)]
        return rollouts.start(self, *found, apart=apart, override=override)

    def judge(self) -> str:
        """Look at the evidence and take the rollout's next step."""
        return self._judge.turn()

    def pause(self) -> str:
        """Keep the weights until `resume`."""
        return rollouts.pause(self)

    def resume(self) -> str:
        """Go on after `pause`."""
        return rollouts.resume(self)

    def promote(self, full: bool = False, version: str = "") -> str:
        """Take the plan's next step now; with `full`, or naming the `version`, make a candidate stable."""
        return rollouts.promote(self, full=full, version=version)

    def abort(self, reason: str = "") -> str:
        """Take the canary's traffic back now."""
        return ending.end(self, "aborted", f"aborted by hand: {reason}" if reason else "aborted by hand")

    def undo(self, to: str = "") -> str:
        """Make an earlier stable version stable again at once."""
        return rollouts.undo(self, to)

    def set_weight(self, percent: int) -> str:
        """Give the canary `percent` of the traffic."""
        return rollouts.set_weight(self, percent)

    # -- alerts

    def alert(self, tier: str, title: str, *, detail: str = "", owner: str = "") -> None:
        """Raise an alert to its owner."""
        note = Alert(tier=tier, title=title, owner=owner or self.pipeline.owner, detail=detail, key=title)
        send(note, pipeline=self.pipeline.name, journal=self.journal, settings=self.settings, clock=self.clock)
