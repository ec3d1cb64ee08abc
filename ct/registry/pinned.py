"""Last known good on this node: the route in force and the verified files of its versions, and the order to stop candidates without a database.

All of it is a copy on local disk for a bad day; the journal stays the truth. Replicas write the pin, an operator writes the order.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ct.errors import Conflict, Corrupt, CtError, InvalidRequest, NotFound
from ct.ids import canonical, sha256
from ct.registry import files
from ct.registry.flags import BUILT_IN, OWN, Flags, checked
from ct.registry.routes import Route
from ct.settings import Settings
from ct.store import files as disk
from ct.store.artifacts import Artifacts
from ct.store.signing import Keys

SPARE_SECONDS = 3600.0
"""So long the files of a version stay that no pinned route names; it may be staged and waiting for its route."""


@dataclass(frozen=True)
class Offline:
    """An order to give candidates nothing while the route's epoch is at most `epoch`. `at` is in ISO 8601, UTC."""

    epoch: int
    at: str
    by: str
    cause: str


# -- the route


def pin(settings: Settings, route: Route) -> bool:
    """Keep `route` on this node's disk, durably, unless a newer one of the same endpoint is. Returns whether it was written. Raises Unavailable."""
    place = _pin(settings, route.endpoint)
    with _alone(place):
        with suppress(Corrupt):
            there = pinned(settings, route.endpoint)
            if there is not None and there.key == route.key and there.epoch >= route.epoch:
                return False
        said = route.to_json()
        disk.put(str(place), canonical({"route": said, "sha256": sha256(canonical(said).encode())}).encode())
    with suppress(CtError, OSError):  # what is left over is in nobody's way
        _trim(settings)
    return True


def pinned(settings: Settings, endpoint: str) -> Route | None:
    """The route that this node's replicas were last under; None where there never was one. Raises Corrupt or Unavailable."""
    place = _pin(settings, endpoint)
    try:
        found = json.loads(disk.get(str(place)))
        if sha256(canonical(found["route"]).encode()) != found["sha256"]:
            raise ValueError("another hash")
        return Route.from_json(found["route"])
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        remedy = "remove it; the replicas write it anew"
        raise Corrupt(f"{place} is no pinned route: {error}", "the bytes that were written", remedy) from None


def pin_flags(settings: Settings, endpoint: str, flags: Flags) -> None:
    """Keep the endpoint's flags on this node's disk: what was switched off stays off without a database. Raises Unavailable."""
    disk.put(str(_pin(settings, endpoint).with_suffix(".flags")), canonical(flags.to_json()).encode())


def pinned_flags(settings: Settings, endpoint: str) -> Flags:
    """The flags that this node's replicas last knew; the defaults where none were kept. Raises Corrupt or Unavailable."""
    place = _pin(settings, endpoint).with_suffix(".flags")
    try:
        found = json.loads(disk.get(str(place)))
        own = {name.removeprefix(OWN): value for name, value in found.items() if name.startswith(OWN)}
        return Flags(**{name: checked(name, found[name]) for name in BUILT_IN}, own=own)
    except NotFound:
        return Flags()
    except (ValueError, KeyError, TypeError, AttributeError, InvalidRequest) as error:
        raise Corrupt(f"{place} holds no flags: {error}", "the bytes that were written", "remove it") from None


# -- the files


def cache(settings: Settings) -> Artifacts:
    """The files of the versions that this node's replicas hold."""
    return Artifacts(settings.home / "pinned" / "files", Keys(settings.trusted_keys))


def fetch(settings: Settings, store: Artifacts, manifest: str) -> dict[str, bytes]:
    """A version's files: from this node's disk if they are there, else from the store, and then kept here.

    Their signature and every byte are verified on either way. Raises what `files.fetch` raises for the store.
    """
    near = cache(settings)
    try:
        return files.fetch(near, manifest)
    except CtError:
        made = files.fetch(store, manifest)
    with suppress(CtError, OSError):  # a full disk makes no version worse
        near.keep(manifest, made, store.signatures(manifest))
    return made


def _trim(settings: Settings) -> None:
    """Remove the files that no pinned route names, an hour after they came."""
    near, folder = cache(settings), settings.home / "pinned"
    named: set[str] = set()
    for place in folder.glob("*.json"):
        route = pinned(settings, place.stem)
        for arm in route.arms if route is not None else ():
            with suppress(CtError):
                named |= {arm.manifest, *near.manifest(arm.manifest).values()}
    for path in (folder / "files").glob("*/*"):
        if path.name.removesuffix(".sig") not in named and time.time() - path.stat().st_mtime > SPARE_SECONDS:
            path.unlink(missing_ok=True)


# -- the order


def abort_offline(settings: Settings, endpoint: str, *, by: str = "", cause: str = "") -> Offline:
    """Have every replica on this node give candidates nothing, within a second, with nothing but this node's disk.

    The order holds until a newer route is in force. Raises NotFound when no replica of `endpoint` has run here, Conflict when the route has no candidate.
    """
    route = pinned(settings, endpoint)
    if route is None:
        raise NotFound(
            f"no route of {endpoint!r} is pinned below {settings.home}",
            "a node whose replicas serve it",
            "run this on such a node, in the project's folder",
        )
    if not route.candidates:
        raise Conflict(f"the route of epoch {route.epoch} has no candidate", "a running rollout", "there is nothing to abort")
    order = Offline(route.epoch, datetime.now(UTC).isoformat(), by or getpass.getuser(), cause or "aborted offline")
    disk.put(str(order_place(settings, endpoint)), canonical(asdict(order)).encode())
    return order


def offline(settings: Settings, endpoint: str) -> Offline | None:
    """The order on this node, None without one. Whoever reads it compares its epoch. Raises Corrupt or Unavailable."""
    place = order_place(settings, endpoint)
    try:
        found: Mapping[str, Any] = json.loads(disk.get(str(place)))
        return Offline(int(found["epoch"]), str(found["at"]), str(found["by"]), str(found["cause"]))
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(
            f"{place} is no order: {error}", "{epoch, at, by, cause}", "write it with `ct rollout abort --offline`"
        ) from None


def order_place(settings: Settings, endpoint: str) -> Path:
    """Where the order of an endpoint lies."""
    return settings.home / "offline" / f"{_name(endpoint)}.json"


def _pin(settings: Settings, endpoint: str) -> Path:
    return settings.home / "pinned" / f"{_name(endpoint)}.json"


def _name(endpoint: str) -> str:
    if not endpoint or endpoint.startswith(".") or "/" in endpoint or "\\" in endpoint or "\0" in endpoint:
        raise InvalidRequest(f"the endpoint {endpoint!r}", "a pipeline's name", "see `ct status`")
    return endpoint


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One writer at a time among this node's replicas: the newest epoch stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
