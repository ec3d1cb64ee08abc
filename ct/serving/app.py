"""The Ray Serve application. `build` is what serve_configs/ names; one deployment, each replica holding stable and candidate."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from ct import settings
from ct.registry.routes import Route
from ct.serving.endpoint import Endpoint
from ct.serving.replica import Replica

MAX_ONGOING = 256
MAX_QUEUED = 512


class AppArgs(BaseModel):
    """The application's arguments. `root` is the project's folder as every replica sees it (CT_ROOT by default); `endpoint` the pipeline's name.

    The others replace what that project's ct.toml says.
    """

    model_config = ConfigDict(extra="forbid")

    endpoint: str
    root: str | None = None
    replicas: int | None = None
    database_url: str | None = None
    storage: str | None = None
    online_url: str | None = None
    max_body_bytes: int | None = None
    max_rows: int | None = None

    def settings(self) -> settings.Settings:
        """The project's settings. Raises InvalidSettings."""
        return settings.load(self.root, **self.model_dump(exclude={"endpoint", "root"}))


@serve.ingress()
class EndpointReplica:
    """One replica. Besides HTTP it answers the control plane's broadcasts."""

    def __init__(self, args: dict[str, Any]) -> None:
        parsed = AppArgs(**args)
        self._replica = Replica(parsed.settings(), parsed.endpoint)
        self._polling: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Endpoint:
        """The ASGI application, asked for by Serve once."""
        return Endpoint(self._replica)

    async def stage(self, version: str, manifest: str) -> str:
        """Load a version beside the others. Returns the replica's name."""
        await asyncio.to_thread(self._replica.stage, version, manifest)
        return self._replica.name

    async def activate(self, route: dict[str, Any]) -> int:
        """Put a route in force. Returns the epoch in force."""
        self._poll()
        return self._replica.activate(Route.from_json(route))

    async def state(self) -> dict[str, Any]:
        """What this replica holds."""
        self._poll()
        return self._replica.state()

    async def check_health(self) -> None:
        """Serve asks regularly. A replica that waits for the first route is healthy, only not ready: restarting it would not help."""
        self._poll()

    def _poll(self) -> None:
        # The event loop does not run yet in __init__, so polling begins with the first call: a health check, at the latest.
        if self._polling is None:
            self._polling = asyncio.create_task(self._replica.keep_converging())


def build(args: AppArgs) -> serve.Application:
    """The application of one endpoint. Called by `serve deploy` with the config's args, and by `ct deploy`."""
    place = args.settings()
    deployment = serve.deployment(
        name="endpoint",
        num_replicas=place.replicas,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 0.5},
        logging_config={"enable_access_log": False},
    )(EndpointReplica)
    return deployment.bind(args.model_dump() | {"root": str(place.root)})
