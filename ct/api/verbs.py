"""What each door of the control API does, as calls of the actor. Takes and gives plain data; knows no HTTP beyond the status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ct.control import rollouts
from ct.control.act import Actor
from ct.errors import Conflict, InvalidRequest, NotFound
from ct.registry import flags, routes
from ct.rollout import state
from ct.rollout.state import Rollout

Body = Mapping[str, Any]
Said = tuple[int, Any]

FIELDS: dict[str, dict[str, type]] = {
    "start": {"versions": list, "override": str, "apart": bool},
    "promote": {"full": bool, "version": str},
    "set_weight": {"percent": int},
    "set_flag": {"value": object, "reason": str},
    "undo": {"to": str},
}
"""The fields that a body may have, by the verb."""


def checked(verb: str, body: Any) -> Body:
    """The body, if it is an object with known fields of the right kind. Raises InvalidRequest."""
    known = FIELDS.get(verb, {})
    if not isinstance(body, dict):
        raise InvalidRequest(f"a body of {type(body).__name__}", "a JSON object", "send one", status=400)
    for name, value in body.items():
        if name not in known:
            raise InvalidRequest(f"the field {name[:80]!r}", f"among {sorted(known)}", "leave it out", field=name[:80])
        kind = known[name]
        if kind is not object and type(value) is not kind:
            raise InvalidRequest(f"{name} = {str(value)[:80]!r}", f"{kind.__name__}", "mend it", field=name)
    return body


def read(act: Actor, verb: str, found: Mapping[str, str]) -> Said:
    """What a door says that changes nothing."""
    name = act.pipeline.name
    match verb:
        case "rollouts":
            return 200, {"rollouts": [said(item) for item in state.history(act.journal, name)]}
        case "rollout":
            rollout = _known(act, found["rollout"])
            events = [
                {"at": event.at.isoformat(), "by": event.actor, "type": event.type, **event.data}
                for event in act.journal.read(state.stream(name))
                if event.data["rollout"] == rollout.id
            ]
            return 200, said(rollout) | {"events": events}
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
    name = act.pipeline.name
    if "rollout" in found and verb != "retry":
        rollout = _known(act, found["rollout"])
        if not rollout.active:
            raise Conflict(f"rollout {rollout.id} has ended: {rollout.outcome}", "one in progress", "start another one")
    match verb:
        case "start":
            return 202, said(_start(act, body))
        case "retry":
            if _known(act, found["rollout"]) != state.history(act.journal, name)[-1]:
                raise Conflict(f"{found['rollout']} is not the last rollout", "the last one", "start its version anew")
            return 202, said(rollouts.retry(act))
        case "set_flag":
            if "value" not in body:
                raise InvalidRequest("no value", '{"value": …}', "say what to set", field="value")
            return 200, flags.set_(act.journal, name, found["flag"], body["value"], reason=body.get("reason", "")).to_json()
        case "undo":
            done = act.undo(body.get("to", ""))
        case "promote":
            done = act.promote(body.get("full", False), body.get("version", ""))
        case "set_weight":
            if "percent" not in body:
                raise InvalidRequest("no percent", '{"percent": 25}', "say how much", field="percent")
            done = act.set_weight(body["percent"])
        case "pause":
            done = act.pause()
        case "resume":
            done = act.resume()
        case _:
            done = act.abort()
    more = {"rollout": said(_known(act, found["rollout"]))} if "rollout" in found else {}
    return 200, {"done": done, "route": shown(act.route())} | more


def said(rollout: Rollout) -> dict[str, Any]:
    """A rollout as plain data; `state` is its phase in the words that controllers share."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(rollout), default=lambda item: item.isoformat()))
    return data | {"state": rollout.shown}


def shown(route: routes.Route) -> dict[str, Any]:
    """A route as plain data, without the key that signs."""
    return {name: value for name, value in route.to_json().items() if name != "key"} | {"shares": route.shares}


def _start(act: Actor, body: Body) -> Rollout:
    names = body.get("versions")
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidRequest(f"versions = {names!r}", 'a list such as ["v2"]', "name what to roll out", field="versions")
    if other := state.active(act.journal, act.pipeline.name):
        raise Conflict(f"rollout {other.id} of {other.version} is in progress", "no other rollout", "wait, or abort it")
    for name in names if body.get("override") else ():
        act.overrule(name, body["override"])
    return act.start_rollout(*names, apart=body.get("apart", False))


def _known(act: Actor, key: str) -> Rollout:
    for rollout in state.history(act.journal, act.pipeline.name):
        if rollout.id == key:
            return rollout
    raise NotFound(f"no rollout {key[:40]!r}", "one of GET …/rollouts", "check the id")
