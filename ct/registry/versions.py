"""Model versions: numbered, immutable, each with its gate record; champion, candidate and retired follow from the routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ct.errors import Conflict, Forbidden, NotFound
from ct.registry import routes
from ct.store.artifacts import Artifacts
from ct.store.journal import Event, Guard, Journal, New


@dataclass(frozen=True)
class Version:
    """One model version. `verdict` is the gate's; `override` says who overruled it and why, empty when nobody did."""

    name: str
    manifest: str
    run: str
    verdict: str
    at: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    override: str = ""

    @property
    def cleared(self) -> bool:
        """May it get traffic?"""
        return self.verdict == "pass" or bool(self.override)


def stream(pipeline: str) -> str:
    """The journal stream of a pipeline's versions."""
    return f"model/{pipeline}"


def register(
    journal: Journal,
    pipeline: str,
    *,
    manifest: str,
    run: str,
    verdict: str,
    metrics: Mapping[str, float],
    reasons: tuple[str, ...] = (),
    version: str = "",
    guard: Guard | None = None,
) -> Version:
    """Record a version; its name is v1, v2, … in order. Registering the same run again returns the version it has.

    `version` is the name that its files say. `guard` is that of `Journal.append`: the run's lease.
    Raises Conflict when another process registers at the same moment, or has taken the name; nothing is recorded then.
    """
    position = journal.version(stream(pipeline))
    known = all_versions(journal, pipeline)
    for found in known:
        if found.run == run:
            return found
    name = f"v{len(known) + 1}"
    if version and version != name:
        raise Conflict(f"the next version is {name}", f"{version}, as its files say", "name the files anew, then register them")
    data: dict[str, Any] = {
        "version": name,
        "manifest": manifest,
        "run": run,
        "verdict": verdict,
        "metrics": dict(metrics),
        "reasons": list(reasons),
    }
    data |= {"makes": f"version/{pipeline}/{name}", "from": [f"run/{pipeline}/{run}"]}
    journal.append(stream(pipeline), [New("VersionRegistered", data)], expected=position, guard=guard)
    return get(journal, pipeline, name)


def overrule(journal: Journal, pipeline: str, name: str, *, reason: str, approvers: Sequence[str] = ()) -> Version:
    """Let a version that failed its gate get traffic all the same. The journal keeps who, in which role, and why.

    Only the `approvers` may, where some are named; one who shows a token is told by its name. Raises NotFound, Forbidden for anybody else, or Conflict without a reason.
    """
    get(journal, pipeline, name)
    journal.append(stream(pipeline), [overruling(journal, name, reason=reason, approvers=approvers)])
    return get(journal, pipeline, name)


def overruling(journal: Journal, name: str, *, reason: str, approvers: Sequence[str] = ()) -> New:
    """The event by which a version is overruled, once it is known that this journal's actor may. Raises as `overrule`."""
    if not reason.strip():
        raise Conflict("an override without a reason", "one sentence that an auditor will read", "give --override 'REASON'")
    if approvers and journal.actor.partition(" (")[0] not in approvers:
        raise Forbidden(
            f"{journal.actor!r} may not overrule a gate",
            f"one of the approvers {sorted(approvers)}",
            "ask one of them to deploy it",
        )
    role = "approver" if approvers else "anyone: no approvers are named"
    return New("GateOverruled", {"version": name, "reason": reason, "role": role})


def sign(journal: Journal, artifacts: Artifacts, pipeline: str, version: Version, *, reason: str) -> str:
    """Sign a version's files with this user's key, after every byte was checked against the manifest that the journal names.

    The journal keeps who and why. Returns the key's id. Raises Conflict without a reason, NotFound, Corrupt, or Untrusted without a key.
    """
    if not reason.strip():
        raise Conflict("a signature without a reason", "one sentence that an auditor will read", "give --reason 'REASON'")
    artifacts.get_set(version.manifest)
    artifacts.sign(version.manifest)
    key = artifacts.signed_by(version.manifest)
    data = {"version": version.name, "manifest": version.manifest, "key": key, "reason": reason}
    journal.append(stream(pipeline), [New("VersionSigned", data)])
    return key


def next_name(journal: Journal, pipeline: str, run: str) -> str:
    """The name that `run` has or would get."""
    known = all_versions(journal, pipeline)
    return next((version.name for version in known if version.run == run), f"v{len(known) + 1}")


def all_versions(journal: Journal, pipeline: str) -> tuple[Version, ...]:
    """Every version, oldest first."""
    versions: dict[str, Version] = {}
    for event in journal.read(stream(pipeline)):
        if event.type == "VersionRegistered":
            versions[event.data["version"]] = _version(event)
        elif event.type == "GateOverruled":
            known = versions[event.data["version"]]
            versions[known.name] = replace(known, override=_overruled(event))
    return tuple(versions.values())


def get(journal: Journal, pipeline: str, name: str) -> Version:
    """One version. Raises NotFound naming those there are."""
    known = all_versions(journal, pipeline)
    for version in known:
        if version.name == name:
            return version
    raise NotFound(f"{pipeline!r} has no version {name!r}", f"one of {[version.name for version in known]}", "see `ct status`")


def alias(journal: Journal, pipeline: str) -> dict[str, str]:
    """{version: "champion" | "candidate" | "retired" | "registered"}, folded from the routes."""
    route = routes.current(journal, pipeline)
    served = {entry.route.stable.version for entry in routes.history(journal, pipeline)}
    names = {version.name: "retired" if version.name in served else "registered" for version in all_versions(journal, pipeline)}
    if route is not None:
        names[route.stable.version] = "champion"
        if route.canary is not None:
            names[route.canary.version] = "candidate"
    return names


def arm(version: Version) -> routes.Arm:
    """The version as a route's arm. Raises Conflict for one that the gate did not clear."""
    if not version.cleared:
        raise Conflict(
            f"{version.name} has the verdict {version.verdict!r}",
            "a version that passed its gate",
            "overrule it with --override and a reason, which is journaled",
        )
    return routes.Arm(version.name, version.manifest)


def _overruled(event: Event) -> str:
    role = event.data.get("role", "")
    return f"{event.actor}{' (approver)' if role == 'approver' else ''}: {event.data['reason']}"


def _version(event: Event) -> Version:
    data = event.data
    return Version(
        name=data["version"],
        manifest=data["manifest"],
        run=data["run"],
        verdict=data["verdict"],
        at=event.at,
        metrics=data["metrics"],
        reasons=tuple(data["reasons"]),
    )
