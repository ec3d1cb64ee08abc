"""What each door of the control API does, as calls of the actor. Takes and gives plain data; knows no HTTP beyond the status."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ct.api.doors import FIELDS, NEEDED
from ct.control import ending, rollouts, turning
from ct.control.act import Actor
from ct.errors import Conflict, Forbidden, InvalidRequest, NotFound
from ct.governance import access
from ct.registry import flags, routes
from ct.rollout import state
from ct.rollout.state import Rollout

Body = Mapping[str, Any]
Said = tuple[int, Any]

LONGEST = 200
"""Letters that a version, a reason or an override may have."""
_KINDS = {list: "a list", str: "a text", bool: "true or false", int: "a whole number", dict: "an object"}
_MOVING = ("promote", "abort", "undo", "resume", "set_weight")
"""Verbs whose route a process may have put in force without the replicas having been told."""
DONE = "done; another process had its part in it"


def checked(verb: str, body: Any) -> Body:
    """The body, if it is an object with known fields of the right kind. Raises InvalidRequest."""
    known = FIELDS.get(verb, {})
    if not isinstance(body, dict):
        raise InvalidRequest(f"a body of {type(body).__name__}", "a JSON object", "send one", status=400)
    for name, value in body.items():
        if name not in known:
            expected = f"among {sorted(known)}" if known else "no field"
            raise InvalidRequest(f"the field {name[:80]!r}", expected, "leave it out", field=name[:80])
        kind = known[name]
        if kind is not object and type(value) is not kind:
            raise InvalidRequest(f"{name} = {str(value)[:80]!r}", _KINDS[kind], "mend it", field=name)
        if isinstance(value, str) and kind is str and len(value) > LONGEST:
            raise InvalidRequest(f"{name} of {len(value):,} letters", f"at most {LONGEST}", "be brief", field=name)
    if (needed := NEEDED.get(verb)) and needed not in body:
        raise InvalidRequest(f"no {needed}", f"the field {needed!r}", "see docs/rollouts.md", field=needed)
    if verb == "start":
        _versions(body["versions"])
    if verb == "set_weight":
        _percents(body)
    return body


def allowed(body: Body, token: access.Token | None) -> None:
    """Raises Forbidden for an override by a caller who is no admin; without tokens everybody is one."""
    if body.get("override") and token is not None and not access.may(token.role, "admin"):
        found = f"an override by the role {token.role!r}"
        raise Forbidden(found, "the role 'admin', to overrule a gate", "ask an admin, or leave the override out")


def read(act: Actor, verb: str, found: Mapping[str, str]) -> Said:
    """What a door says that changes nothing."""
    name = act.pipeline.name
    match verb:
        case "rollouts":
            return 200, {"rollouts": [state.plain(item) for item in state.history(act.journal, name)]}
        case "rollout":
            rollout = _known(act, found["rollout"])
            events = [
                {"at": event.at.isoformat(), "by": event.actor, "type": event.type, **event.data}
                for event in act.journal.read(state.stream(name))
                if event.data["rollout"] == rollout.id
            ]
            return 200, state.plain(rollout) | {"events": events}
        case "history":
            told = [
                {"at": entry.at.isoformat(), "cause": entry.cause, **shown(entry.route)}
                for entry in routes.history(act.journal, name)
            ]
            return 200, {"history": told}
        case _:
            return 200, flags.current(act.journal, name).to_json()


def change(act: Actor, verb: str, found: Mapping[str, str], body: Body) -> Said:
    """Do what a door says. Returns its status and what came of it."""
    name, key = act.pipeline.name, found.get("rollout", "")
    if key and verb != "retry" and not (rollout := _known(act, key)).active:
        raise Conflict(f"rollout {key} has ended: {rollout.outcome}", "one in progress", "start another one")
    match verb:
        case "start":
            key = _start(act, body).id
        case "retry":
            if _known(act, key) != state.history(act.journal, name)[-1]:
                raise Conflict(f"{key} is not the last rollout", "the last one", "start its version anew")
            key = rollouts.retry(act).id
        case "set_flag":
            flags.set_(act.journal, name, found["flag"], body["value"], reason=body.get("reason", ""))
        case _:
            return answer(act, verb, key, _steer(act, verb, body))
    return answer(act, verb, key)


def _steer(act: Actor, verb: str, body: Body) -> str:
    match verb:
        case "undo":
            return act.undo(body.get("to", ""))
        case "promote":
            return act.promote(body.get("full", False), body.get("version", ""))
        case "set_weight":
            return rollouts.set_weights(act, body["weights"]) if "weights" in body else act.set_weight(body["percent"])
        case "pause":
            return act.pause()
        case "resume":
            return act.resume()
        case _:
            return act.abort(body.get("reason", ""))


def answer(act: Actor, verb: str, rollout: str, done: str = "") -> Said:
    """What a door says that has changed something: the rollout, the flags, or what was done with the route and the rollout now."""
    match verb:
        case "start" | "retry":
            return 202, state.plain(_known(act, rollout))
        case "set_flag":
            return 200, flags.current(act.journal, act.pipeline.name).to_json()
        case _:
            more = {"rollout": state.plain(_known(act, rollout))} if rollout else {}
            return 200, {"done": done, "route": shown(act.route())} | more


def resumed(act: Actor, verb: str, rollout: str) -> Said:
    """The answer for a verb that was decided, by a process that did not live to answer, or with `ct watch` at the same moment.

    What is left of it is done as `ct watch` would. Raises Unavailable.
    """
    active = state.active(act.journal, act.pipeline.name)
    with suppress(Conflict):  # `ct watch` was quicker
        if active is not None and active.phase == "progressing" and active.step < 0 and not active.tries:
            rollouts.begin(act, active)
        elif active is not None:
            turning.mend(act, active, act.route())
        else:
            ending.close(act)
    if verb in _MOVING:
        act.serving.activate(act.route())
    return answer(act, verb, rollout, DONE)


def shown(route: routes.Route) -> dict[str, Any]:
    """A route as plain data, without the key that signs."""
    return {name: value for name, value in route.to_json().items() if name != "key"} | {"shares": route.shares}


def _versions(names: list[Any]) -> None:
    if not names or not all(isinstance(name, str) and 0 < len(name) <= LONGEST for name in names):
        raise InvalidRequest(
            f"versions = {str(names)[:80]}", 'a list such as ["v2"]', "name what to roll out", field="versions"
        )


def _percents(body: Body) -> None:
    if len(body) != 1:
        raise InvalidRequest(
            f"the fields {sorted(body)}",
            '{"percent": 25}, or {"weights": {"v2": 20}} by version',
            "send one of both",
            field="percent",
        )
    weights = body.get("weights", {"percent": body.get("percent")})
    if not weights:
        raise InvalidRequest("no weights", 'such as {"v2": 20}', "name what changes", field="weights")
    for name, percent in weights.items():
        if type(percent) is not int or not 0 <= percent <= 100:
            field = "weights" if "weights" in body else "percent"
            raise InvalidRequest(f"{name[:80]} = {str(percent)[:40]!r}", "a whole number from 0 to 100", "mend it", field=field)


def _start(act: Actor, body: Body) -> Rollout:
    state.none_else(act.journal, act.pipeline.name)
    return act.start_rollout(*body["versions"], apart=body.get("apart", False), override=body.get("override", ""))


def _known(act: Actor, key: str) -> Rollout:
    for rollout in state.history(act.journal, act.pipeline.name):
        if rollout.id == key:
            return rollout
    raise NotFound(f"no rollout {key[:40]!r}", "one of GET …/rollouts", "check the id")
