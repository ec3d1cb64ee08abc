"""Every door of the control API: method, path, role and what it does. What is not here is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ENDPOINT = "/v1/endpoints/{endpoint}"
ROLLOUTS = ENDPOINT + "/rollouts"
FLAGS = ENDPOINT + "/flags"
ROLLOUT = ROLLOUTS + "/{rollout}"

FIELDS: Mapping[str, Mapping[str, type]] = {
    "start": {"versions": list, "override": str, "apart": bool},
    "promote": {"full": bool, "version": str},
    "set_weight": {"percent": int, "weights": dict},
    "set_flag": {"value": object, "reason": str},
    "undo": {"to": str},
    "abort": {"reason": str},
}
"""The fields that a body may have, by the verb."""
NEEDED: Mapping[str, str] = {"start": "versions", "set_flag": "value"}
"""The field that a body must have."""


@dataclass(frozen=True)
class Door:
    """`name` is what is done, `role` is who may; `changes` says that it takes Idempotency-Key and If-Match."""

    name: str
    method: Literal["GET", "POST", "PUT"]
    path: str
    role: Literal["", "read", "operate"]
    summary: str
    changes: bool = False


def _verb(name: str, summary: str) -> Door:
    return Door(name, "POST", f"{ROLLOUT}:{name.replace('_', '-')}", "operate", summary, changes=True)


DOORS: tuple[Door, ...] = (
    Door("live", "GET", "/healthz", "", "Does the process answer?"),
    Door("metrics", "GET", "/metrics", "read", "Route and rollouts in the Prometheus text format"),
    Door("openapi", "GET", "/openapi.json", "read", "This description"),
    Door("rollouts", "GET", ROLLOUTS, "read", "Every rollout, oldest first"),
    Door("history", "GET", f"{ENDPOINT}/history", "read", "What was live when, and why"),
    Door("flags", "GET", FLAGS, "read", "Every flag that is in force"),
    Door("set_flag", "PUT", FLAGS + "/{flag}", "operate", "Set one flag; null takes an own flag away", changes=True),
    Door("start", "POST", ROLLOUTS, "operate", "Begin a rollout by the pipeline's plan", changes=True),
    Door("undo", "POST", f"{ENDPOINT}:undo", "operate", "Make an earlier version stable again at once", changes=True),
    _verb("promote", "Take the plan's next step now, or make a candidate stable"),
    _verb("pause", "Keep the weights as they are"),
    _verb("resume", "Go on at the step's own weight"),
    _verb("abort", "Take the candidates' traffic back now"),
    _verb("retry", "Start the last rollout again that was taken back"),
    _verb("set_weight", "Set the weights and pause"),
    Door("rollout", "GET", ROLLOUT, "read", "One rollout with its events and evidence"),
)
