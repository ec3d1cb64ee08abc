"""A version apart: it runs as a Serve application of its own, with its own processes and packages, and the endpoint's replicas ask it for scores.

A crash, a hang or a memory blow-up there is a failed call here, bounded in time and number; what then answers is decided in answering.py.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.exceptions import BackPressureError

from ct import settings
from ct.errors import Unavailable
from ct.features.declare import from_spec, needs_code
from ct.features.encode import Encoder
from ct.features.transform import lookups_of
from ct.registry import files, pinned
from ct.registry.files import ModelSpec
from ct.registry.routes import Arm
from ct.roles import Columns, History, Lookup
from ct.serving.lanes import Lane
from ct.serving.passes import Failed, Gone, said
from ct.serving.runtime import ONNX, Predictor, Wanted
from ct.store.artifacts import Artifacts
from ct.store.signing import Keys

AT_ONCE, WAITING = 16, 256
"""Calls that one process of an application works on at once, and that each replica of the endpoint lets wait for one: as many as it may have in
work itself, for as stable such a version answers them all."""
ASK_SECONDS = 5.0
CHECK_SECONDS = 5.0
START_SECONDS = 120.0
"""A new environment's packages are installed meanwhile."""


Spans = tuple[Columns, NDArray[np.int64], NDArray[np.int64]]


def app_name(endpoint: str, version: str) -> str:
    """The name of the Serve application that runs a version apart."""
    return f"{endpoint}--{version}"


class Remote:
    """A Serve application that scores, as one replica of the endpoint sees it. All is done on that replica's event loop.

    `lookups` are the histories that its version reads.
    """

    def __init__(self, app: str, lookups: Sequence[Lookup] = ()) -> None:
        self._app, self.lookups = app, tuple(lookups)
        self._handle: Any = None
        self._finding: asyncio.Task[Any] | None = None
        # Serve's controller is asked for a handle, which blocks: in a thread that nothing else needs.
        self._lane = Lane(f"handle of {app}", threads=1, waiting=1)
        self._waiting = 0

    async def score(
        self, columns: Columns, times: NDArray[np.int64], history: History
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """Scores [n] or [n, k] and feature columns, as `Predictor.score`.

        Raises Unavailable when it does not answer in time or is full, Failed with what the version itself fails with.
        """
        # A history is bound to its store; what it found travels.
        found = [history.spans(columns, times, lookup) for lookup in self.lookups]
        answer = await self._ask("score", dict(columns), times, found)
        if isinstance(answer, str):
            raise Failed(answer)
        scores, features = answer
        return scores, features

    async def facts(self) -> dict[str, Any]:
        """What the application says of the version that it holds. Raises Unavailable."""
        found: dict[str, Any] = await self._ask("facts")
        return found

    async def _ask(self, method: str, *args: Any) -> Any:
        if self._waiting >= WAITING:
            raise Unavailable(
                f"{WAITING} calls wait for {self._app}", "one that ends", "see why it is slow; give it more replicas"
            )
        self._waiting += 1
        handle = response = None
        try:
            async with asyncio.timeout(ASK_SECONDS):
                handle = self._handle or await self._found()
                response = getattr(handle, method).remote(*args)
                answer = await response
                response = None
                return answer
        except TimeoutError:
            raise Unavailable(
                f"{self._app} took over {ASK_SECONDS:g} s", "an answer by then", "see its log and its replicas"
            ) from None
        except Exception as error:
            full = isinstance(error, (BackPressureError, Unavailable))
            if self._handle is handle and not full:
                self._handle = None  # Serve's handles to an application that was deleted stay dead
            kind = Unavailable if full else Gone
            raise kind(f"{self._app}: {said(error)}", "an application that answers", "see its log") from None
        finally:
            self._waiting -= 1
            if response is not None:  # nobody waits for it any more
                response.cancel()

    async def _found(self) -> Any:
        """A handle; who asks while another asks shares what it gets."""
        if self._finding is None:
            self._finding = asyncio.create_task(self._lane.call(partial(serve.get_app_handle, self._app), ASK_SECONDS))
            self._finding.add_done_callback(self._keep)
        return await asyncio.shield(self._finding)

    def _keep(self, finding: asyncio.Task[Any]) -> None:
        self._finding = None
        if not finding.cancelled() and finding.exception() is None:
            self._handle = finding.result()


@dataclass(frozen=True)
class RemotePredictor(Predictor):
    """A version that another application holds. Its own code is not run in this process, its graph not loaded."""

    remote: Remote = field(kw_only=True, compare=False, repr=False)
    alike: bool = field(kw_only=True, default=False)
    there: str = field(kw_only=True, default=ONNX)

    near: ClassVar[bool] = False

    @staticmethod
    def reach(app: str, made: Mapping[str, bytes], loop: asyncio.AbstractEventLoop) -> RemotePredictor:
        """The version with these verified files as `app` runs it, once that answers. Called from a thread. Raises Unavailable or Corrupt."""
        spec = ModelSpec.from_bytes(made[files.SPEC])
        # A user's own functions, which are not loaded here, read no history.
        features = tuple(from_spec(feature) for feature in spec.features if not needs_code(feature))
        remote = Remote(app, lookups_of(features))
        facts = asyncio.run_coroutine_threadsafe(remote.facts(), loop).result(ASK_SECONDS + 1.0)
        if facts["version"] != spec.version:
            raise Unavailable(f"{app} holds {facts['version']}", f"it to hold {spec.version}", "remove it and deploy it anew")
        return RemotePredictor(
            spec=spec,
            features=features,
            encoder=Encoder.from_json(made[files.ENCODER]),
            engine=None,
            golden={},
            instead=facts.get("instead", ""),
            remote=remote,
            alike=facts["steady"],
            there=facts.get("runtime", ONNX),
        )

    @property
    def runtime(self) -> str:
        """What runs it there."""
        return self.there

    @cached_property
    def steady(self) -> bool:
        """As the application found."""
        return self.alike

    async def ask(
        self, rows: Columns, times: NDArray[np.int64], history: History
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """See `Remote.score`."""
        return await self.remote.score(rows, times, history)


class ArmArgs(BaseModel):
    """What an application of one version is told. `most_bytes` limits the address space of each of its processes, 0 does not."""

    model_config = ConfigDict(extra="forbid")

    root: str
    version: str
    manifest: str
    most_bytes: int = Field(default=0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The History of one request as the endpoint's replica found it: the spans of each of `lookups`."""

    lookups: tuple[Lookup, ...]
    found: Sequence[Spans]

    def spans(self, rows: Columns, times: NDArray[np.int64], lookup: Lookup) -> Spans:
        """What was found for the request's rows."""
        return self.found[self.lookups.index(lookup)]


class ArmReplica:
    """One process that holds one version and nothing else: no route, no log, no HTTP."""

    def __init__(self, args: dict[str, Any]) -> None:
        parsed = ArmArgs(**args)
        if parsed.most_bytes:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (parsed.most_bytes, hard))
        place = settings.load(parsed.root, **parsed.options)
        store = Artifacts(place.place("artifacts"), Keys(place.trusted_keys))
        self._predictor = Predictor.load(pinned.fetch(place, store, parsed.manifest), wanted=Wanted.of(place))
        self._predictor.warm()

    async def score(
        self, rows: dict[str, NDArray[Any]], times: NDArray[np.int64], found: Sequence[Spans]
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]] | str:
        """See `Predictor.score`; `found` are the spans of each of its lookups. What it fails with is told in the log's words: an exception of
        the version's own would need its code where it arrives."""
        try:
            return await asyncio.to_thread(self._predictor.score, rows, times, Found(self._predictor.lookups, found))
        except Exception as error:
            return said(error)

    async def facts(self) -> dict[str, Any]:
        """The version's name, what runs it, and whether rows may be scored together."""
        held, steady = self._predictor, await asyncio.to_thread(lambda: self._predictor.steady)
        return {"version": held.version, "steady": steady, "runtime": held.runtime, "instead": held.instead}

    async def check_health(self) -> None:
        """Its first golden row, in time; beside the event loop, so that a model which hangs is found out."""
        await asyncio.wait_for(asyncio.to_thread(self._predictor.check, 1), CHECK_SECONDS)


def build(
    place: settings.Settings, arm: Arm, *, replicas: int, runtime_env: Mapping[str, Any] | None = None, most_bytes: int = 0
) -> serve.Application:
    """The application of one version apart."""
    given = {name: getattr(place, name) or None for name in ("database_url", "storage", "online_url", "runtime")}
    args = ArmArgs(root=str(place.root), version=arm.version, manifest=arm.manifest, most_bytes=most_bytes, options=given)
    deployment = serve.deployment(
        name="arm",
        num_replicas=replicas,
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=WAITING,
        max_surge_percent=100,  # deployed anew with more processes, those that run go on until as many others do
        health_check_period_s=1,
        health_check_timeout_s=CHECK_SECONDS + 1,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": 0.25, "runtime_env": dict(runtime_env or {})},
        logging_config={"enable_access_log": False},
    )(ArmReplica)
    return deployment.bind(args.model_dump())


def known(name: str) -> bool:
    """Is there an application of that name that is not being ended? Ending one takes half a minute, for Serve lets its processes drain."""
    status = serve.status().applications.get(name)
    return status is not None and status.status != "DELETING"


def start(name: str, application: serve.Application, replicas: int, seconds: float = START_SECONDS) -> None:
    """Run it under `name`, or change the number of its replicas, and wait until `replicas` of them run.

    Raises Unavailable when they do not in time; what ran before under that name goes on, and what did not is removed.
    """
    before = known(name)
    target = serve.RunTarget(application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    until, found = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        status = serve.status().applications.get(name)
        arms = list(status.deployments.values()) if status is not None else []
        found = "; ".join(filter(None, [str(status and status.message), *(arm.message for arm in arms)]))
        enough = all(sum(n for state, n in arm.replica_states.items() if state == "RUNNING") >= replicas for arm in arms)
        if status is not None and status.status == "RUNNING" and enough:
            return
        # A process that cannot load the version is tried a few times; the whole wait would tell no more.
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY") and not before:
            break
        time.sleep(0.2)
    if not before:
        serve.delete(name, _blocking=False)
    last = found.strip().splitlines()[-1][:300] if found.strip() else "it did not come up"
    raise Unavailable(f"{name} did not start: {last}", "a version that loads in its own process", "see its log in Ray's folder")
