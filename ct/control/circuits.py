"""What ends a candidate at once, without weighing evidence: its circuit is open, its files are refused, or its own application does not stay up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ct.errors import CtError
from ct.registry.routes import Arm, Route, arm_name
from ct.rollout.state import Rollout

if TYPE_CHECKING:
    from ct.control.act import Actor

DOWN_SECONDS, MOST_FALLS = 30.0, 3
"""An application apart is in a crash loop when none of its processes ran for so long, or went from running to none so often in one rollout."""


class Circuits:
    """What the replicas and Serve say of the candidates at each look, and how often applications apart have fallen."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._rollout = ""
        self._down: dict[str, float] = {}
        self._falls: dict[str, int] = {}

    def opened(self, rollout: Rollout, route: Route) -> dict[str, str]:
        """The candidates that must go now, with the cause of each. Empty where the replicas do not answer: nothing is known then."""
        if self._rollout != rollout.id:
            self._rollout, self._down, self._falls = rollout.id, {}, {}
        try:
            states = self._act.serving.state()
        except CtError:
            return {}
        here, most = [state for state in states if state["epoch"] == route.epoch], len(states) / 2
        found: dict[str, str] = {}
        for at, share in enumerate(route.candidates):
            if share.out:
                continue
            name, arm = arm_name(at), share.arm
            if cause := self._open(here, most, name) or self._refused(here, most, name, arm, rollout) or self._crashing(arm):
                found[arm.version] = cause
        return found

    def _open(self, here: list[dict[str, Any]], most: float, name: str) -> str:
        opened = sum(bool(state.get("circuits", {}).get(name)) for state in here)
        return f"its circuit is open on {opened} of {most * 2:.0f} replicas" if opened > most else ""

    def _refused(self, here: list[dict[str, Any]], most: float, name: str, arm: Arm, rollout: Rollout) -> str:
        """Loading runs the golden rows, and tells of what it refuses; a replica that starts later may be the first to do so."""
        without = sum(state.get("shown", {}).get(name, arm.version) != arm.version for state in here)
        if without <= most:
            return ""
        told = self._act.journal.read(f"audit/{self._act.pipeline.name}", types=["ArtifactRefused", "LoadFailed"])
        mine = [event.data["found"] for event in told if event.data["manifest"] == arm.manifest and event.at >= rollout.started]
        return f"{without} of {most * 2:.0f} replicas could not load it: {mine[-1]}" if mine else ""

    def _crashing(self, arm: Arm) -> str:
        if not arm.app:
            return ""
        now = self._act.clock.now().timestamp()
        try:
            running, said = self._act.serving.arm_state(arm)
        except CtError:
            return ""
        if running:
            self._down.pop(arm.app, None)
            return ""
        if arm.app not in self._down:
            self._down[arm.app] = now
            self._falls[arm.app] = self._falls.get(arm.app, 0) + 1
        falls, seconds = self._falls[arm.app], now - self._down[arm.app]
        if falls < MOST_FALLS and seconds < DOWN_SECONDS:
            return ""
        return f"its application {arm.app} is in a crash loop: down {falls} times, now for {seconds:.0f} s; {said or 'no process runs'}"
