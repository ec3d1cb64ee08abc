"""A candidate, the champion, the trivial baseline and challengers on the same newest rows, and the gate's verdict about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.control import runs
from ct.control.place import Place
from ct.control.rows import Rows, take
from ct.data.columns import to_columns
from ct.errors import Corrupt, CtError, InvalidPipeline, NotFound
from ct.evaluation import gate, metrics, own, paired
from ct.evaluation.evidence import CHAMPION, TRIVIAL, Evaluation, Evidence, Finding, SliceGain, Verdict, plain
from ct.evaluation.paired import Answers, Gain
from ct.evaluation.trivial import Trivial, last_known
from ct.evaluation.windows import Window
from ct.features import build
from ct.features.declare import own_features, to_spec
from ct.objectives import Objective
from ct.registry import files, routes
from ct.roles import Columns, Encoded
from ct.serving.runtime import Predictor, Wanted

WARM_CALLS, TIMED_CALLS, TIMED_ROUNDS = 30, 100, 3
FEWEST, FEWEST_OF_A_CLASS = 200, 10


@dataclass(frozen=True)
class Report:
    """A candidate against champion, baseline and challengers on the same rows of `window`, and all that was measured there.

    `difference` is the gate's first comparison with the champion. `facts` are plain data: over_time, curve, challengers, maturity, …
    """

    candidate: Evaluation
    champion: Evaluation | None
    difference: Gain | None
    verdict: Verdict
    window: str
    segments: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    gains: Mapping[tuple[str, str], Gain] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        made = {
            "window": self.window,
            "rows": self.candidate.rows,
            "candidate": dict(self.candidate.metrics),
            "champion": dict(self.champion.metrics) if self.champion else None,
            "difference": self.difference.to_json() if self.difference else None,
            "gains": [
                {"metric": metric, "against": against, **gain.to_json()} for (metric, against), gain in self.gains.items()
            ],
            "verdict": self.verdict.decision,
            "reasons": list(self.verdict.reasons),
            "findings": [finding.to_json() for finding in self.verdict.findings],
            "warnings": list(self.verdict.warnings),
            "segments": {name: {value: dict(m) for value, m in by.items()} for name, by in self.segments.items()},
            **self.facts,
        }
        found: dict[str, Any] = plain(made)
        return found


def predictor(place: Place, made: Mapping[str, bytes]) -> Predictor:
    """A version's predictor on the runtime that will serve it; functions of its features come from the pipeline file."""
    return Predictor.load(made, lambda: own_features(place.pipeline.features), Wanted.of(place.settings))


def judge(place: Place, made: Mapping[str, bytes], data: Rows) -> Report:
    """`compare` for a version's files. Files that the serving runtime does not load, or whose golden rows come out otherwise, are an error."""
    try:
        candidate = predictor(place, made)
    except Corrupt as error:
        found = Finding("golden rows in the serving runtime", "error", str(error))
        nothing = Evaluation({}, int(data.split.judge.sum()))
        return Report(nothing, None, None, Verdict("error", (found.reason,), (found,)), str(data.split.window))
    return compare(place, candidate, data, size=sum(map(len, made.values())))


def compare(place: Place, candidate: Predictor, data: Rows, *, size: int | None = None) -> Report:
    """Candidate and champion on the judging window, with the gate's verdict. `size` is that of the candidate's files in bytes."""
    return _Judging(place, candidate, data).report(size)


@dataclass(frozen=True)
class _Version:
    """What a version says about the judged rows, and its metrics."""

    answers: Answers
    evaluation: Evaluation


class _Judging:
    """One judgement: everything measured once, on the rows under the judging mask."""

    def __init__(self, place: Place, candidate: Predictor, data: Rows) -> None:
        self.place, self.data, self.model = place, data, candidate
        self.gate: gate.Gate = place.pipeline.gate
        self.objective: Objective = place.pipeline.label.objective
        self.warnings: list[str] = [f"{candidate.runtime} serves it: {candidate.instead}"] if candidate.instead else []
        self.faults: list[str] = []
        self.champion = self._loaded()
        self.mask, self.window = self._unseen()
        self.label, self.times = data.label[self.mask], data.times[self.mask]
        self.features = seen_by(place, candidate, data)
        self.columns: Columns = {
            **{name: values[self.mask] for name, values in data.segments.items()},
            **take(self.features, self.mask),
        }
        self.trivial = self._trivial()
        length = int(duration(self.gate.blocks).total_seconds() * 1e6) if self.gate.blocks else 0
        self.blocks = paired.blocks(self.times, length)

    def report(self, size: int | None) -> Report:
        """Everything measured, and the verdict."""
        ours = self._version(self.model.score_features(take(self.features, self.mask)), self.model.threshold, "the candidate")
        champion = self._champion()
        evidence = Evidence(
            candidate=ours.evaluation,
            champion=champion.evaluation if champion else None,
            gains=self._gains(ours, champion),
            slices=self._slices(ours, champion),
            latency_ms=latency_ms(self.model, self.columns),
            size_mb=None if size is None else size / 1e6,
            faults=tuple(self.faults),
        )
        challengers = [found for part in self.gate.challengers if (found := self._challenger(part, ours))]
        verdict = gate.decide(self.gate, evidence, self.objective, self.warnings)
        first = self.gate.comparisons[0].metric
        return Report(
            candidate=ours.evaluation,
            champion=evidence.champion,
            difference=evidence.gains.get((first, CHAMPION)),
            verdict=verdict,
            window=str(self.window),
            segments=self._segments(ours.answers),
            gains=evidence.gains,
            facts=self._facts(ours.answers, evidence, challengers),
        )

    def _facts(self, ours: Answers, evidence: Evidence, challengers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        split = self.data.split
        return {
            "over_time": metrics.over_time(
                ours.scores,
                self.label,
                self.times,
                ours.threshold,
                objective=self.objective,
                trivial=self.trivial,
                own=partial(self._own, ours),
            ),
            "curve": metrics.curve(self.objective, ours.scores, self.label),
            "challengers": list(challengers),
            "threshold": ours.threshold,
            "confidence": self.gate.confidence,
            "blocks": int(self.blocks.max(initial=-1)) + 1,
            "latency_ms": evidence.latency_ms,
            "size_mb": evidence.size_mb,
            "maturity": {
                "hours": round(split.delay / 3.6e9, 3),
                "immature": split.immature,
                "unlabelled": split.unlabelled,
                "labelled_share": len(self.label) / max(len(self.label) + split.unlabelled, 1),
            },
        }

    def _loaded(self) -> Predictor | None:
        """The champion. One that cannot be loaded makes the verdict an error: nothing can be compared with it."""
        route = routes.current(self.place.journal, self.place.pipeline.name)
        if route is None:
            return None
        try:
            return predictor(self.place, files.fetch(self.place.artifacts, route.stable.manifest))
        except (Corrupt, NotFound) as error:
            self.faults.append(f"the champion {route.stable.version} cannot be loaded: {error.found}")
            return None

    def _unseen(self) -> tuple[NDArray[np.bool_], Window]:
        """The judging rows that no version was trained on, nor what it began with: a champion of a shorter holdout may know some."""
        split, start = self.data.split, self.data.split.window.start
        for version in (self.champion, self.model):
            if version is None:
                continue
            run = str(version.spec.lineage.get("run", ""))
            until = runs.trained_until(self.place.journal, self.place.pipeline.name, run)
            if until > start:
                start = until
                self.warnings.append(f"rows before {_day(until)} are left out: {version.version} was trained on such")
        mask = split.judge & (self.data.times >= start)
        if mask.sum() >= FEWEST:
            return mask, replace(split.window, start=start)
        self.faults.append(f"only {int(mask.sum())} rows are newer than what was trained on, {FEWEST} are needed")
        return split.judge, split.window

    def _trivial(self) -> Trivial:
        declared, data = self.gate.trivial, self.data
        learned = Trivial.learned(self.objective, data.label[data.split.train])
        if not declared.last:
            return learned
        groups = data.segments[declared.per] if declared.per else None
        last = last_known(data.times, data.known_at, data.label, groups, self.mask)
        return replace(learned, last=np.where(np.isnan(last), learned.middle, last))

    def _own(self, answers: Answers, mask: NDArray[np.bool_]) -> dict[str, float]:
        part = answers.of(mask)
        return own.values(self.gate.metrics, part.scores, self.label[mask], take(self.columns, mask))[0]

    def _version(self, scores: NDArray[np.float64], threshold: float, who: str) -> _Version:
        found = metrics.measured(self.objective, scores, self.label, threshold, self.trivial)
        further, faults = own.values(self.gate.metrics, scores, self.label, self.columns)
        self.warnings += [f"{who}: {fault}" for fault in faults]
        return _Version(Answers(scores, threshold), Evaluation({**found, **further}, len(self.label)))

    def _champion(self) -> _Version | None:
        champion = self.champion
        if champion is None:
            return None
        name = champion.version
        if (theirs := Objective.from_json(champion.spec.objective)) != self.objective:
            self.faults.append(
                f"the champion {name} answers another question ({theirs.kind}) than the label ({self.objective.kind}); "
                "give the pipeline another name: another label is another endpoint"
            )
            return None
        try:
            seen = take(seen_by(self.place, champion, self.data), self.mask)
        except InvalidPipeline as error:
            self.faults.append(f"the champion {name} cannot be asked: {error.found}")
            return None
        return self._version(champion.score_features(seen), champion.threshold, f"the champion {name}")

    def _gain(self, metric: str, ours: Answers, theirs: Answers, mask: NDArray[np.bool_] | None = None) -> Gain | None:
        """None where it cannot be measured; why stands among the warnings."""
        label, block, columns = self.label, self.blocks, self.columns
        if mask is not None:
            ours, theirs, label, block = ours.of(mask), theirs.of(mask), label[mask], block[mask]
        try:
            if metric in self.gate.metrics:
                value = own.function_of(self.gate.metrics[metric])
                higher = self.gate.higher(metric)
                return paired.own_gain(value, higher, columns, ours, theirs, label, block, confidence=self.gate.confidence)
            return paired.gain(self.objective, metric, ours, theirs, label, block, confidence=self.gate.confidence)
        except Exception as error:  # a user's metric may raise anything; without the number the verdict is an error
            if not isinstance(error, CtError) and metric not in self.gate.metrics:
                raise
            self.warnings.append(f"{metric} could not be compared: {error}")
            return None

    def _gains(self, ours: _Version, champion: _Version | None) -> dict[tuple[str, str], Gain]:
        found: dict[tuple[str, str], Gain | None] = {}
        if champion is not None:
            for part in self.gate.comparisons:
                found[part.metric, CHAMPION] = self._gain(part.metric, ours.answers, champion.answers)
        metric = self.gate.trivial.measure(self.objective)
        base = Answers(self.trivial.scores(self.objective, metric, len(self.label)))
        found[metric, TRIVIAL] = self._gain(metric, ours.answers, base)
        return {key: gain for key, gain in found.items() if gain is not None}

    def _slices(self, ours: _Version, champion: _Version | None) -> list[SliceGain]:
        guard = self.gate.sliced(self.objective)
        if guard is None or champion is None:
            return []
        found = []
        for segment, values in self.data.segments.items():
            texts = np.array([str(value) for value in values[self.mask]])
            for value, count in zip(*np.unique(texts, return_counts=True), strict=True):
                mask = texts == value
                enough = count >= guard.minimum and self._varied(self.label[mask])
                gain = self._gain(guard.metric, ours.answers, champion.answers, mask) if enough else None
                found.append(SliceGain(segment, str(value), int(count), gain))
        return found

    def _varied(self, label: NDArray[np.float64]) -> bool:
        """Ten rows of each of two classes, or different numbers."""
        if self.objective.kind in ("binary", "classes"):
            return bool((np.unique(label, return_counts=True)[1] >= FEWEST_OF_A_CLASS).sum() > 1)
        return bool(np.ptp(label) > 0)

    def _segments(self, ours: Answers) -> dict[str, dict[str, dict[str, float]]]:
        return {
            name: metrics.by_segment(
                ours.scores,
                self.label,
                values[self.mask],
                ours.threshold,
                objective=self.objective,
                trivial=self.trivial,
                own=partial(self._own, ours),
            )
            for name, values in self.data.segments.items()
        }

    def _challenger(self, part: Any, ours: _Version) -> dict[str, Any]:
        """A challenger's metrics and the candidate's gain over it: a positive gain speaks for the candidate. Empty where it failed."""
        held = self.data.split.calibrate & (self.objective.kind == "binary")
        asked = self.mask | held
        begun = perf_counter()
        scores = np.full((len(asked), *ours.answers.scores.shape[1:]), np.nan)
        try:
            scores[asked] = self._told(part, asked)
        except Exception as error:  # it may raise anything; it is never promoted, so it stops nobody either
            self.warnings.append(f"the challenger {part.name} failed: {type(error).__name__}: {error}")
            return {}
        threshold = metrics.best_threshold(scores[held], self.data.label[held]) if held.any() else 0.5
        theirs = self._version(scores[self.mask], threshold, part.name)
        name = self._compared_by()
        gain = self._gain(name, ours.answers, theirs.answers)
        if gain is not None and gain.high < 0:
            self.warnings.append(
                f"{part.name} is better by {-gain.estimate:.4f} [{-gain.high:.4f}, {-gain.low:.4f}] in {name} on the same rows"
            )
        return {
            "name": part.name,
            "metrics": dict(theirs.evaluation.metrics),
            "metric": name,
            "gain": gain.to_json() if gain else None,
            "seconds": round(perf_counter() - begun, 2),
        }

    def _told(self, part: Any, asked: NDArray[np.bool_]) -> NDArray[np.float64]:
        """A challenger's scores of the rows under `asked`, whose labels it is not shown. Raises InvalidPipeline for what is no score."""
        unknown = replace(self._encoded(asked), label=np.full(int(asked.sum()), np.nan))
        found = np.asarray(part.scores(self.objective, self._encoded(self.data.split.train), unknown), np.float64)
        wide = (self.objective.outputs,) if self.objective.outputs > 1 else ()
        if found.shape != (len(unknown.label), *wide) or not np.isfinite(found).all():
            shape = (len(unknown.label), *wide)
            raise InvalidPipeline(
                f"scores of shape {found.shape}, or no finite ones", f"finite ones of shape {shape}", "mend scores()"
            )
        return found

    def _compared_by(self) -> str:
        known = [part.metric for part in self.gate.comparisons if part.metric not in self.gate.metrics]
        return (known or [paired.PRIMARY[self.objective.kind]])[0]

    def _encoded(self, mask: NDArray[np.bool_]) -> Encoded:
        part = take(self.features, mask)
        encoder = self.model.encoder
        return Encoded(encoder.numeric(part), encoder.category(part), self.data.label[mask], self.data.weight[mask])


def _day(us: int) -> str:
    return f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M}"


def latency_ms(version: Predictor, columns: Columns) -> float:
    """The 99th percentile of warm calls of one row in the serving runtime, in milliseconds: the median of three rounds of 100 calls.

    Looking up history is not in it: that is the online store's, measured live.
    """
    names = version.encoder.names
    count = len(next(iter(columns.values())))
    rows = [{name: columns[name][at : at + 1] for name in names} for at in range(min(count, TIMED_CALLS))]
    for at in range(WARM_CALLS):
        version.score_features(rows[at % len(rows)])
    rounds = []
    for _ in range(TIMED_ROUNDS):
        seconds = []
        for at in range(TIMED_CALLS):
            begun = perf_counter()
            version.score_features(rows[at % len(rows)])
            seconds.append(perf_counter() - begun)
        rounds.append(float(np.quantile(seconds, 0.99)) * 1e3)
    return float(np.median(rounds))


def seen_by(place: Place, version: Predictor, data: Rows) -> Columns:
    """All rows' features as a version defines them: a column of the same name may mean something else in the pipeline now.

    Raises InvalidPipeline where they read a table or a column that is no more.
    """
    line = place.pipeline
    if version.spec.features == tuple(to_spec(feature) for feature in line.features):
        return data.columns
    made = build.build(line.replace(features=version.features), data.shards, folder=place.settings.place("features"))
    table = build.read(made, columns=version.encoder.names)
    return to_columns(table.select(list(version.encoder.names)))
