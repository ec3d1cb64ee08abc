"""What a rollout looks like: as plain data, in a line, and as a table. Reads what it is given and the journal, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ct.cli import output

if TYPE_CHECKING:
    from ct.store.journal import Journal


def data(name: str, journal: Journal) -> dict[str, Any]:
    """The route in force, each arm's share from 0 to 1, and the rollout in progress or else the last one, with the keys of the control API."""
    from ct.registry import routes
    from ct.rollout import state

    route, told = routes.current(journal, name), state.history(journal, name)
    said = {key: value for key, value in route.to_json().items() if key != "key"} if route else None
    shares = {arm: weight / routes.WHOLE for arm, weight in route.shares.items()} if route else {}
    return {"route": said, "shares": shares, "rollout": state.plain(told[-1]) if told else None}


def line(name: str, data: dict[str, Any]) -> str:
    """All of it in a line; `now` in the data is a look that is in no journal yet."""
    route, rollout, now = data["route"], data["rollout"], data.get("now")
    if route is None:
        return f"{name} is not deployed"
    left = [share for share in route["candidates"] if not share["out"]]
    names = [route["stable"]["version"], *(share["arm"]["version"] for share in left)]
    said = [f"{arm} {version} {share:.4g}" for (arm, share), version in zip(data["shares"].items(), names, strict=True)]
    parts = [f"{name}: epoch {route['epoch']}, {', '.join(said)}"]
    if rollout:
        step = f", step {rollout['step'] + 1}" if rollout["step"] >= 0 and rollout["phase"] != "ended" else ""
        parts.append(f"rollout {rollout['id']} {rollout['state']}{step} {rollout['cause']}".rstrip())
    if now:
        parts += [*_evidence(now), f"{now['version']}: {now['decision']} {now['cause']}".rstrip()]
    return "; ".join(parts)


def view(name: str, data: dict[str, Any]) -> None:
    """Print it for a person."""
    rollout, now = data["rollout"], data.get("now")
    output.line(line(name, {**data, "now": None}))
    if not rollout:
        return
    seen = now or rollout
    output.table(
        "evidence",
        ("metric", "e-value", "alarm at", "stable bad/n", "canary bad/n"),
        (
            (
                e["metric"],
                e["e_value"],
                e["limit"],
                f"{e['stable_bad']}/{e['stable_n']}",
                f"{e['canary_bad']}/{e['canary_n']}",
            )
            for e in seen["evidence"]
        ),
    )
    for said in _beside(seen):
        output.line(said)
    if now:
        output.line(f"{now['version']}: {now['decision']} {now['cause']}".rstrip())


def _evidence(seen: dict[str, Any]) -> list[str]:
    from ct.rollout.verdict import Evidence

    return [str(Evidence(**_fields(row))) for row in seen["evidence"]]


def _beside(rollout: dict[str, Any]) -> list[str]:
    """What the latest look says beside its evidence: the split, what answers are worth, the segments."""
    from ct.rollout.segments import Segment
    from ct.rollout.worth import Gain

    said = []
    if (split := rollout["split"]) and split["n"]:
        said.append(
            f"split: the canary got {split['canary']:,} of {split['n']:,} units, {split['ratio']:.2f} of what its weights promise"
        )
    said += [str(Gain(**_fields(gain))) for gain in rollout["gains"]]
    if segments := rollout["segments"]:
        harmed = [str(Segment(**_fields(row))) for row in segments["rows"] if row["harmed"]]
        said.append(f"segments: {len(harmed)} harmed of {segments['judged']:,} pairs of a metric and a value")
        said += [f"harmed: {row}" for row in harmed]
    return said


def _fields(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "kind"}
