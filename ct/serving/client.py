"""The endpoint's control side: deploy it, stage versions, activate routes, run versions apart, ask what is in force. Decides nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ct.errors import Conflict, Unavailable
from ct.governance import binds
from ct.registry import routes
from ct.registry.routes import Arm, Route
from ct.serving import haproxy, local
from ct.settings import Settings
from ct.store.journal import Journal, New

STAGE_SECONDS, COMPILE_SECONDS = 60.0, 300.0
"""How long a version may take to load in a replica, and how much longer where the node compiles it first."""
ACTIVATE_SECONDS = 5.0
STATE_SECONDS = 5.0
DRAIN_SECONDS = 30.0
REQUEST_SECONDS = 30.0


class Serving:
    """One endpoint on the cluster this process is connected to."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        # Outside an event loop a handle needs a router loop of its own; read when ray.serve is imported.
        os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")
        os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
        self._cluster = settings.ray_address or os.environ.get("RAY_ADDRESS", "")
        if haproxy.used(os.environ) and not (self._cluster and settings.tls_cert):
            os.environ[binds.HAPROXY] = "1"
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._settings, self._endpoint = settings, endpoint
        self._handle: Any = None

    def deploy(self) -> None:
        """Start the application unless it runs. A running one is never deployed anew, because that would restart its replicas.

        Raises Unavailable when it does not come up, InvalidSettings when it must not listen where it is told to.
        """
        if self.running():
            return
        binds.check(self._settings, self._settings.host, Journal(self._settings.database))
        if self._cluster:
            binds.without_haproxy(self._settings, os.environ)
        if self._cluster or not haproxy.used(os.environ):
            binds.without_plain_grpc(self._settings)
        from ray import serve

        from ct.serving.app import AppArgs, build

        place = self._settings
        named = {name: getattr(place, name) for name in ("replicas", "max_body_bytes", "max_rows", "runtime")}
        named |= {name: getattr(place, name) or None for name in ("database_url", "storage", "online_url")}
        named |= {name: str(path) for name in ("tls_cert", "tls_key") if (path := getattr(place, name)) is not None}
        args = AppArgs(endpoint=self._endpoint, root=str(place.root), host=place.host, hosts=place.hosts, **named)
        options = {"port": place.port, "request_timeout_s": REQUEST_SECONDS} | self._listening()
        try:
            serve.start(
                http_options=options, grpc_options=self._grpc(), proxy_location="EveryNode" if place.ray_address else "HeadOnly"
            )
            serve.run(build(args), name=self._endpoint, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            raise Unavailable(f"the endpoint did not start: {error}", "healthy replicas", "see the replica's log") from None
        self._handle = None
        if place.tls_cert is not None and not self._cluster:
            binds.speaks_tls(place)

    def _grpc(self) -> dict[str, Any] | None:
        """Serve's gRPC server, where the settings give it a port."""
        if not self._settings.grpc_port:
            return None
        function = "ct.serving.grpc_service.add_to_server"
        timeout = {"request_timeout_s": REQUEST_SECONDS, "enable_reflection": False}
        return {"port": self._settings.grpc_port, "grpc_servicer_functions": [function], **timeout}

    def _listening(self) -> dict[str, str]:
        """Where Serve listens, and its TLS. Before HAProxy of our own head it keeps to loopback: the program in HAProxy's place does both."""
        if self._cluster or not haproxy.used(os.environ):
            return {"host": self._settings.host} | binds.tls(self._settings)
        return {"host": "127.0.0.1"}

    def running(self) -> bool:
        """Does the application run?"""
        from ray import serve

        try:
            found = serve.status().applications.get(self._endpoint)
        except Exception:  # Serve raises several kinds where it was never started; none of them means that it runs
            return False
        return found is not None and found.status == "RUNNING"

    def stage(self, version: str, manifest: str, app: str = "") -> None:
        """Load a version beside the others in every replica; with `app` have them reach the application that holds it.

        A replica that does not answer in time holds up nobody and follows by its own polling. Raises Unavailable when one cannot load it,
        or none answers.
        """
        if app:
            self._require_app(Arm(version, manifest, app))
        seconds = STAGE_SECONDS + (COMPILE_SECONDS if self._settings.runtime == "aot" else 0.0)
        self._broadcast("stage", version, manifest, *([app] if app else []), seconds=seconds)

    def activate(self, route: Route) -> list[int]:
        """Put a route in force in every replica. Returns their epochs. A replica that does not answer follows by its own polling."""
        return [int(epoch) for epoch in self._broadcast("activate", route.to_json(), seconds=ACTIVATE_SECONDS)]

    def state(self) -> list[dict[str, Any]]:
        """What each replica that answers holds. Raises Unavailable when none does."""
        return list(self._broadcast("state", seconds=STATE_SECONDS))

    # -- versions apart

    def deploy_arm(
        self, arm: Arm, *, replicas: int = 1, runtime_env: Mapping[str, Any] | None = None, most_bytes: int = 0
    ) -> Arm:
        """Run a version apart, as an application of its own with `runtime_env`; called again, give it more or fewer replicas.

        Returns the arm as a route names it; stage that next. `most_bytes` limits each process's address space, 0 does not. Raises
        Unavailable when it does not come up: then nothing has changed for the endpoint.
        """
        from ct.serving import isolated

        arm = self.apart(arm)
        application = isolated.build(self._settings, arm, replicas=replicas, runtime_env=runtime_env, most_bytes=most_bytes)
        isolated.start(arm.app, application, replicas)
        given = {"replicas": replicas, "runtime_env": dict(runtime_env or {}), "most_bytes": most_bytes}
        # A new cluster knows nothing of it: what it takes to run it again is kept.
        Journal(self._settings.database).append(f"apart/{self._endpoint}", [New("ArmDeployed", {"app": arm.app, **given})])
        return arm

    def apart(self, arm: Arm) -> Arm:
        """The version as a route names it when it runs apart."""
        from ct.serving import isolated

        return replace(arm, app=isolated.app_name(self._endpoint, arm.version))

    def scale_arm(self, arm: Arm, replicas: int) -> bool:
        """Give a version apart `replicas` processes if it has fewer, and wait until they run. Those it has answer meanwhile. Raises Unavailable."""
        given = self._given(arm)
        if given is None or given["replicas"] >= replicas:
            return False
        self.deploy_arm(arm, **{**given, "replicas": replicas})
        return True

    def arm_state(self, arm: Arm) -> tuple[int, str]:
        """How many processes of a version apart run, and what Serve says where that are none. Raises Unavailable."""
        from ray import serve

        try:
            status = serve.status().applications.get(arm.app)
        except Exception as error:  # Serve raises several kinds where it does not run
            raise Unavailable(f"Serve does not answer: {error}", "a cluster that serves", "run `ct deploy`") from error
        if status is None:
            return 0, f"{arm.app} does not run"
        parts = list(status.deployments.values())
        running = sum(n for part in parts for state, n in part.replica_states.items() if state == "RUNNING")
        said = [line for text in (status.message, *(part.message for part in parts)) for line in text.strip().splitlines()]
        return running, said[-1][:300] if said and not running else ""

    def _given(self, arm: Arm) -> dict[str, Any] | None:
        """With what a version apart was last deployed, None where it never was."""
        told = Journal(self._settings.database).read(f"apart/{self._endpoint}", types=["ArmDeployed"])
        known = [event.data for event in told if event.data["app"] == arm.app]
        return {name: value for name, value in known[-1].items() if name != "app"} if known else None

    def _require_app(self, arm: Arm) -> None:
        """Run a version apart again as it was last run, if it does not run."""
        from ct.serving import isolated

        if isolated.known(arm.app):
            return
        given = self._given(arm)
        if given is None:
            raise Unavailable(
                f"{arm.app} does not run, and nobody has deployed it here", "a version apart", "deploy_arm it first"
            )
        self.deploy_arm(arm, **given)

    def remove_arm(self, arm: Arm, *, seconds: float = DRAIN_SECONDS) -> bool:
        """End a version apart once no replica's route names it and no request uses it. Returns whether there was one.

        Raises Conflict while the journal's route names it, Unavailable when the replicas have not come to that route, or not answered what
        they had begun, in time.
        """
        from ray import serve

        from ct.serving import isolated

        name, until, left = arm.app, time.monotonic() + seconds, ""
        while name and isolated.known(name):
            route = routes.current(Journal(self._settings.database), self._endpoint)
            if route is not None and any(named.app == name for named in route.arms):
                raise Conflict(f"the route names {name}", "a route without it", "roll back or promote another version first")
            if not (left := self._still_asks(arm.version, route.epoch if route is not None else 0)):
                serve.delete(name, _blocking=False)
                return True
            if time.monotonic() > until:
                raise Unavailable(f"{name} may still be asked after {seconds:g} s: {left}", "nobody who needs it", "try again")
            time.sleep(0.1)
        return False

    def _still_asks(self, version: str, epoch: int) -> str:
        """Who may still ask for a version that the route of `epoch` does not name: a replica with an older one, or with a request begun."""
        from ray import serve

        status = serve.status().applications.get(self._endpoint)
        parts = status.deployments.values() if status is not None else ()
        # One that starts begins with the newest route; one that stops takes nothing new.
        there = sum(n for part in parts for state, n in part.replica_states.items() if state not in ("STARTING", "STOPPING"))
        if not there:
            return ""
        states = []
        with suppress(Unavailable):
            states = self.state()
        if len(states) < there:
            return f"{there - len(states)} of {there} replicas do not answer"
        if behind := sorted({state["epoch"] for state in states if state["epoch"] < epoch}):
            return f"a replica goes by epoch {behind[0]} of {epoch}"
        return "its requests have not ended" if any(state["in_flight"].get(version) for state in states) else ""

    def _broadcast(self, method: str, *args: Any, seconds: float) -> list[Any]:
        from ray import serve

        if not self._cluster and local.died(
            self._settings
        ):  # Ray would wait for half a minute, and after a whole one end this process
            self._handle = None
            raise Unavailable("Ray's head has died", "a running head", "run `ct deploy`; `ct watch` does")
        try:
            if self._handle is None:
                handle = serve.get_app_handle(self._endpoint)
                # A handle learns of the replicas with its first call; a broadcast before that would reach none of them.
                handle.state.remote().result(timeout_s=STATE_SECONDS)
                self._handle = handle
            # Each replica has its own deadline, so one that hangs or dies keeps the others' answers from nobody.
            found = list(self._handle.broadcast(method, *args).results(timeout_s=seconds, return_exceptions=True))
        except Exception as error:
            raise self._unavailable(method, error) from error
        answers = [answer for answer in found if not isinstance(answer, BaseException)]
        faults = [answer for answer in found if isinstance(answer, BaseException)]
        refusals = [fault for fault in faults if not _silent(fault)]
        if refusals or (faults and not answers):
            raise self._unavailable(method, (refusals or faults)[0])
        return answers

    def _unavailable(self, method: str, error: BaseException) -> Unavailable:
        self._handle = None
        said = str(error).strip().splitlines()
        return Unavailable(
            f"the endpoint did not {method}: {type(error).__name__}: {said[-1] if said else ''}",
            "replicas that answer",
            "start it with `ct deploy`",
        )


def _silent(fault: BaseException) -> bool:
    """Did the replica not answer, rather than refuse?"""
    from ray.exceptions import GetTimeoutError, RayActorError

    return isinstance(fault, (TimeoutError, GetTimeoutError, RayActorError))
