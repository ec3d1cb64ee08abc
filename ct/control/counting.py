"""What a rollout is judged by: its counts, a fold of the prediction log, kept between looks; and the verdict on them. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ct.control import rollouts
from ct.data import labels, predictions
from ct.registry import routes
from ct.registry.routes import Route
from ct.rollout import verdict
from ct.rollout.guards import Business, Scores, middle
from ct.rollout.look import look
from ct.rollout.paired import Paired, compare
from ct.rollout.plans import Plan
from ct.rollout.state import Rollout
from ct.rollout.steps import as_pair
from ct.rollout.tally import Tally
from ct.rollout.verdict import Verdict

if TYPE_CHECKING:
    from ct.control.act import Actor

_ORDER = ("roll_back", "abort", "hold", "continue", "promote")


class Counting:
    """The counts of the rollout in progress, of each candidate beside stable. A new process counts the same."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._rollout = ""
        self._tallies: tuple[Tally, ...] = ()
        self._cursor: Any = None
        self._epochs: dict[int, Route] = {}

    def verdict(self, rollout: Rollout, route: Route, plan: Plan, elapsed_s: float) -> tuple[str, Verdict]:
        """The verdict at the rollout's step; of several candidates that are left the worst one, and which that is."""
        self._read(rollout, plan)
        left = [(name, tally) for name, tally in zip(rollout.versions, self._tallies, strict=True) if name in rollout.left]
        paired = self._paired(rollout, plan) if route.shadow else None
        tallies, among = (tally for _, tally in left), len(rollout.versions)
        found = look(plan, *tallies, step=rollout.step, elapsed_s=elapsed_s, paired=paired, among=among)
        each = [(name, item) for (name, _), item in zip(left, found, strict=True)]
        return min(each, key=lambda item: _ORDER.index(item[1].decision))

    def _paired(self, rollout: Rollout, plan: Plan) -> Paired:
        """The shadow beside stable on the rows that both have scored since the rollout began."""
        objective = self._act.pipeline.label.objective
        records = predictions.everything(self._act.settings)
        joined = labels.join(records)
        answered = {row.id: row for row in joined.rows if row.version == rollout.baseline}
        shadows = [
            row
            for row in joined.shadow
            if row.version == rollout.version and row.epoch >= rollout.first_epoch and row.of in answered
        ]
        ours, truth = labels.arrays(shadows, objective)
        theirs, _ = labels.arrays([answered[row.of] for row in shadows], objective)
        found = compare(objective, theirs, ours, truth, alpha=verdict.paired_alpha(plan))
        asked = [
            bool(record["error"])
            for record in records
            if record["kind"] == "shadow" and record["version"] == rollout.version and record["epoch"] >= rollout.first_epoch
        ]
        return replace(found, asked=len(asked), failed=sum(asked))

    def _earlier(self, rollout: Rollout) -> list[float]:
        """Stable's scores from before the rollout, so that the limits learned from them do not depend on what they judge."""
        return [
            float(record["score"])
            for record in predictions.everything(self._act.settings)
            if record["kind"] == "prediction"
            and record["version"] == rollout.baseline
            and record["epoch"] < rollout.first_epoch
            and not record["error"]
            and record["score"] is not None
        ]

    def _read(self, rollout: Rollout, plan: Plan) -> None:
        if self._rollout != rollout.id:
            tallies = tuple(self._tally(rollout, plan) for _ in rollout.versions)
            self._add(tallies, predictions.committed(self._act.settings, first_epoch=rollout.first_epoch))
            # Only now: a store that failed above is asked again at the next look.
            self._rollout, self._tallies, self._cursor = rollout.id, tallies, None
        records, self._cursor = predictions.read(self._act.settings.inbox, self._cursor)
        self._add(self._tallies, records)

    def _tally(self, rollout: Rollout, plan: Plan) -> Tally:
        label = self._act.pipeline.label
        specs = {arm.version: rollouts.spec_of(self._act, arm) for arm in self._act.route().arms}
        cuts = {version: spec.threshold for version, spec in specs.items()}
        # Only what every arm's answers tell: else one arm alone would have requests in the segment.
        told = self._act.pipeline.segments
        segments = tuple(name for name in told if all(name in spec.segments for spec in specs.values()))
        valued = tuple(guard for guard in plan.guards if isinstance(guard, Business))
        between = middle(self._earlier(rollout)) if any(isinstance(guard, Scores) for guard in plan.guards) else None
        return Tally(rollout.first_epoch, rollout.slow_ms, label.objective, rollout.limit, cuts, valued, between, segments)

    def _add(self, tallies: tuple[Tally, ...], records: Iterable[Mapping[str, Any]]) -> None:
        if len(tallies) == 1:
            tallies[0].add(records)
            return
        known = list(records)
        if {record["epoch"] for record in known if record["kind"] == "prediction"} - self._epochs.keys():
            history = routes.history(self._act.journal, self._act.pipeline.name)
            self._epochs = {entry.route.epoch: entry.route for entry in history}
        route = self._act.route()
        for at, tally in enumerate(tallies):
            pairs = (as_pair(record, at, self._epochs.get(record.get("epoch", 0), route)) for record in known)
            tally.add(record for record in pairs if record is not None)
