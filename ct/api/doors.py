"""Every door of the control API: method, path, role and what it does. What is not here is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROLLOUTS = "/v1/endpoints/{endpoint}/rollouts"
FLAGS = "/v1/endpoints/{endpoint}/flags"


@dataclass(frozen=True)
class Door:
    """`name` is what is done, `role` is who may; `changes` says that it takes Idempotency-Key and If-Match."""

    name: str
    method: Literal["GET", "POST", "PUT"]
    path: str
    role: Literal["", "read", "operate"]
    changes: bool = False


DOORS: tuple[Door, ...] = (
    Door("live", "GET", "/healthz", ""),
    Door("metrics", "GET", "/metrics", "read"),
    Door("rollouts", "GET", ROLLOUTS, "read"),
    Door("history", "GET", "/v1/endpoints/{endpoint}/history", "read"),
    Door("flags", "GET", FLAGS, "read"),
    Door("set_flag", "PUT", FLAGS + "/{flag}", "operate", changes=True),
    Door("start", "POST", ROLLOUTS, "operate", changes=True),
    Door("undo", "POST", "/v1/endpoints/{endpoint}:undo", "operate", changes=True),
    Door("promote", "POST", ROLLOUTS + "/{rollout}:promote", "operate", changes=True),
    Door("pause", "POST", ROLLOUTS + "/{rollout}:pause", "operate", changes=True),
    Door("resume", "POST", ROLLOUTS + "/{rollout}:resume", "operate", changes=True),
    Door("abort", "POST", ROLLOUTS + "/{rollout}:abort", "operate", changes=True),
    Door("retry", "POST", ROLLOUTS + "/{rollout}:retry", "operate", changes=True),
    Door("set_weight", "POST", ROLLOUTS + "/{rollout}:set-weight", "operate", changes=True),
    Door("rollout", "GET", ROLLOUTS + "/{rollout}", "read"),
)
