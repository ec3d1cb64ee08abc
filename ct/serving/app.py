"""The Ray Serve application. `build` is what serve_configs/ names; one deployment, each replica holding stable and candidate."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingPolicy
from ray.serve.context import _get_global_client

from ct import settings
from ct.errors import Unavailable
from ct.governance import binds
from ct.registry.routes import Route
from ct.serving import paths
from ct.serving.access import Access, Gate, hosts
from ct.serving.door import Door
from ct.serving.endpoint import Endpoint
from ct.serving.exposition import Sample
from ct.serving.grpc_service import Inference
from ct.serving.isolated import RemotePredictor
from ct.serving.limits import Limits
from ct.serving.replica import Replica
from ct.serving.replies import App
from ct.serving.runtime import Predictor
from ct.serving.scaling import IN_WORK
from ct.serving.scrape import Siblings
from ct.store.journal import Journal

MAX_ONGOING = 256
MAX_QUEUED = 512
TARGET_ONGOING = 16
"""Requests that a replica of an autoscaled endpoint should be answering at once."""


class AppArgs(BaseModel):
    """The application's arguments. `root` is the project's folder as every replica sees it (CT_ROOT by default); `endpoint` the pipeline's name.

    The others replace what that project's ct.toml says; `near`, that Serve keeps to loopback, is found by `build`.
    """

    model_config = ConfigDict(extra="forbid")

    endpoint: str
    root: str | None = None
    replicas: int | str | tuple[int, int] | None = None
    database_url: str | None = None
    storage: str | None = None
    online_url: str | None = None
    max_body_bytes: int | None = None
    max_rows: int | None = None
    runtime: str | None = None
    direct_port: int | None = None
    host: str | None = None
    hosts: tuple[str, ...] | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    near: bool = False

    def settings(self) -> settings.Settings:
        """The project's settings. Raises InvalidSettings."""
        return settings.load(self.root, **self.model_dump(exclude={"endpoint", "root", "near"}))


@serve.ingress()
class EndpointReplica(Inference):
    """One replica. Besides HTTP and gRPC it answers the control plane's broadcasts."""

    def __init__(self, args: dict[str, Any]) -> None:
        parsed = AppArgs(**args)
        place = parsed.settings()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replica, self._gate = Replica(place, parsed.endpoint, reach=self._reach), Gate(place)
        self._hosts, self._near = hosts(place, place.host), parsed.near
        known = serve.get_replica_context()
        self._replica.known_as = known.replica_tag
        self._replica.siblings = Siblings(known.app_name, known.deployment, known.replica_tag)
        self._polling: tuple[asyncio.Task[None], ...] = ()
        self._door: Door | None = None
        self.straight: App | None = None  # see straight.py
        # What is there now stays: 300,000 objects of Ray, numpy and the models. A full collection over them stops every request for 0.13 s.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> App:
        """The ASGI application, asked for by Serve once."""
        telemetry = self._replica.telemetry
        inside = Access(Endpoint(self._replica), self._gate, paths.found, hosts=self._hosts, answered=telemetry.answered)
        limits = Limits(inside, self._replica.settings, answered=telemetry.limited)
        telemetry.in_work = lambda: limits.in_work
        if self._replica.settings.direct_port:
            self._door = Door(
                limits, self._replica.settings, ready=self._ready, fault=telemetry.fault, refused=telemetry.limited
            )
        self.straight = limits
        return limits

    async def stage(self, version: str, manifest: str, app: str = "") -> str:
        """Load a version beside the others, or reach the application that holds it. Returns the replica's name."""
        self._poll()
        await asyncio.to_thread(self._replica.stage, version, manifest, app)
        return self._replica.name

    async def activate(self, route: dict[str, Any]) -> int:
        """Put a route in force. Returns the epoch in force."""
        self._poll()
        return self._replica.activate(Route.from_json(route))

    async def samples(self) -> tuple[str, list[Sample]]:
        """How Serve calls this replica, and what it counted. A sibling asks for its scrape."""
        self._poll()
        return await self._replica.samples()

    async def state(self) -> dict[str, Any]:
        """What this replica holds."""
        self._poll()
        return self._replica.state()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks regularly: what scaling.py goes by beside Serve's own count."""
        return {IN_WORK: float(self._replica.telemetry.in_work())}

    async def check_health(self) -> None:
        """Serve asks regularly, and replaces a replica that fails or does not answer three times: see `Replica.check`."""
        self._poll()
        await self._replica.check()

    def _ready(self) -> bool:
        return self._replica.slots.live is not None

    async def __del__(self) -> None:
        """Serve awaits this when it stops a replica, after its own requests have ended and before it kills the process."""
        if self._door is not None:
            await self._door.close()
        await self._replica.close()

    def _reach(self, app: str, made: Mapping[str, bytes]) -> Predictor:
        if self._loop is None:
            raise Unavailable(f"{app} cannot be asked yet", "a replica that polls", "wait a second")
        return RemotePredictor.reach(app, made, self._loop)

    def _poll(self) -> None:
        # The event loop does not run yet in __init__, so polling begins with the first call: a health check, at the latest.
        if not self._polling:
            self._loop = asyncio.get_running_loop()
            known = self._gate.keep_current(self._replica.telemetry.fault)
            work = (self._replica.keep_converging(), self._replica.keep_heeding(), known)
            self._polling = tuple(map(asyncio.create_task, work))
            if self._door is not None:
                self._polling += (asyncio.create_task(self._door.keep_open()),)


def build(args: AppArgs | dict[str, Any]) -> serve.Application:
    """The application of one endpoint. Called by `serve deploy` with the config's args, and by `ct deploy`.

    Raises InvalidSettings when Serve listens beyond loopback and the project has no live token.
    """
    args = AppArgs.model_validate(args)  # `serve deploy` gives a dict, for Serve does not read annotations that are text
    served, told = _served(), args.settings().host
    # What `http_options` said to the Serve that runs, or what it is told itself, whichever reaches further.
    bound = told if served is None or (args.host is not None and binds.loopback(served)) else served
    args = args.model_copy(update={"host": bound, "near": binds.loopback(served or told)})
    place = args.settings()
    binds.check(place, bound, Journal(place.database))
    deployment = serve.deployment(
        name="endpoint",
        **_scale(place),
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        health_check_period_s=1,
        health_check_timeout_s=3,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 0.5},
        logging_config={"enable_access_log": False},
    )(EndpointReplica)
    return deployment.bind(args.model_dump() | {"root": str(place.root)})


def _scale(place: settings.Settings) -> dict[str, Any]:
    """So many replicas, or as many as keep each near TARGET_ONGOING requests at once.

    Serve counts what each replica is answering and keeps waiting, behind HAProxy too. It adds within seconds and takes away after minutes,
    for a replica needs seconds to start and verify its versions.
    """
    least, most = place.replica_range
    if least == most:
        return {"num_replicas": least}
    pace = {"look_back_period_s": 10, "metrics_interval_s": 1, "upscale_delay_s": 5, "downscale_delay_s": 300}
    policy = {"policy": AutoscalingPolicy(policy_function="ct.serving.scaling:by_work")}
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": TARGET_ONGOING,
            **pace,
            **policy,
        }
    }


def _served() -> str | None:
    """Where the Serve that runs listens, None where none does."""
    running = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return str(running.http_config.host) if running is not None else None
