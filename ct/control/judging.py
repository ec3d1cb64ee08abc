"""A candidate and the champion on the same newest rows, and the gate's verdict about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ct.control.place import Place
from ct.control.rows import Rows, take
from ct.data.columns import to_columns
from ct.evaluation import gate, metrics, stats
from ct.features import build
from ct.features.declare import own_features, to_spec
from ct.ids import describe
from ct.registry import files, routes
from ct.roles import Columns
from ct.serving.runtime import Predictor


@dataclass(frozen=True)
class Report:
    """A candidate against the champion on the same rows."""

    candidate: gate.Evaluation
    champion: gate.Evaluation | None
    difference: stats.Interval | None
    verdict: gate.Verdict
    window: str
    segments: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "window": self.window,
            "candidate": dict(self.candidate.metrics),
            "champion": dict(self.champion.metrics) if self.champion else None,
            "difference": describe(self.difference) if self.difference else None,
            "verdict": self.verdict.decision,
            "reasons": list(self.verdict.reasons),
            "segments": {name: {value: dict(m) for value, m in by.items()} for name, by in self.segments.items()},
        }


def predictor(place: Place, made: Mapping[str, bytes]) -> Predictor:
    """A version's predictor; functions of its features come from the pipeline file."""
    return Predictor.load(made, lambda: own_features(place.pipeline.features))


def compare(place: Place, candidate: Predictor, data: Rows) -> Report:
    """Candidate and champion on the judging window, the interval on their difference, and the gate's verdict."""
    line = place.pipeline
    label = data.label[data.split.judge]
    scores = candidate.score_features(_seen_by(place, candidate, data))
    ours = gate.Evaluation(metrics.metrics(scores, label, candidate.threshold), len(label))
    route = routes.current(place.journal, line.name)
    theirs, difference = None, None
    if route is not None:
        champion = predictor(place, files.fetch(place.artifacts, route.stable.manifest))
        other = champion.score_features(_seen_by(place, champion, data))
        theirs = gate.Evaluation(metrics.metrics(other, label, champion.threshold), len(label))
        difference = stats.delong(scores, other, label)
    segments = {
        name: metrics.by_segment(scores, label, values[data.split.judge], candidate.threshold)
        for name, values in data.segments.items()
    }
    return Report(ours, theirs, difference, gate.decide(line.gate, ours, theirs, difference), str(data.split.window), segments)


def _seen_by(place: Place, version: Predictor, data: Rows) -> Columns:
    """The judging rows' features as a version defines them: a column of the same name may mean something else in the pipeline now."""
    line = place.pipeline
    if version.spec.features == tuple(to_spec(feature) for feature in line.features):
        return take(data.columns, data.split.judge)
    made = build.build(line.replace(features=version.features), data.shards, folder=place.settings.place("features"))
    table = build.read(made, columns=version.encoder.names)
    return take(to_columns(table.select(list(version.encoder.names))), data.split.judge)
