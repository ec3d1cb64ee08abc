"""What a run takes over from the champion that was served when it began: its weights to begin with, its scores and the drift since then to
weigh rows by, its labels to compare with. All of it follows from the run's frozen `start`, so a run that is carried out again takes the same.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.control import runs
from ct.control.judging import predictor, seen_by
from ct.control.place import Place
from ct.control.rows import Rows, profiled_by, take
from ct.data.profile import Profiles
from ct.errors import InvalidPipeline, TrainingFailed
from ct.evaluation import weighing
from ct.features import continuing
from ct.features.declare import to_spec
from ct.features.encode import Encoder
from ct.monitoring import drift
from ct.objectives import Objective
from ct.registry import files, routes
from ct.registry.files import ModelSpec
from ct.registry.versions import all_versions
from ct.roles import Weighed
from ct.training import checkpoint, start
from ct.training.declare import Torch

Floats = NDArray[np.float64]
NOISE = 4.0
"""So many standard errors are still noise."""
_FEWEST = 100
"""With fewer new rows nothing is compared."""


@dataclass(frozen=True)
class Beginning:
    """Where a training begins: its encoder, the weights of each member (none: from scratch), and what is recorded about it."""

    encoder: Encoder
    weights: tuple[start.Weights | None, ...]
    facts: Mapping[str, Any]


def frozen(place: Place) -> dict[str, Any]:
    """The champion now, as a run's `start` holds it; empty before the first deployment."""
    line = place.pipeline
    route = routes.current(place.journal, line.name)
    if route is None:
        return {}
    version = next(known for known in all_versions(place.journal, line.name) if known.name == route.stable.version)
    run = runs.get(place.journal, line.name, version.run)
    facts = run.facts if run else {}
    return {
        "version": version.name,
        "manifest": version.manifest,
        "run": version.run,
        "weights": facts.get("weights", ""),
        "warm": facts.get("start", {}).get("warm", 0),
    }


def begin(place: Place, run: runs.Run, model: Any, fitted: Encoder) -> Beginning:
    """Where `model` begins, `fitted` being the encoder learned from the run's rows.

    With `start="champion"` the encoder goes on from the champion's and every member begins with the champion's weights, as far as names
    and shapes fit: with the new values of categories where the module's shapes allow it, else without. It then says of every row
    what the champion says. The optimizer starts anew. `facts` say from which version, or why from scratch.
    """
    scratch = Beginning(fitted, (None,) * len(model.members), {})
    if model.start != "champion":
        return scratch
    if not run.start:
        return Beginning(fitted, scratch.weights, _scratch("there was no champion"))
    limit = min(part.fresh_every for part in model.members)
    if limit and run.start["warm"] >= limit:
        return Beginning(
            fitted, scratch.weights, _scratch(f"{run.start['warm']} runs in a row began with their champion's weights")
        )
    made = files.fetch(place.artifacts, run.start["manifest"])
    spec, earlier = ModelSpec.from_bytes(made[files.SPEC]), Encoder.from_json(made[files.ENCODER])
    if reason := _unlike(place, spec) or continuing.fault(earlier, fitted):
        return Beginning(fitted, scratch.weights, _scratch(f"against {run.start['version']}, {reason}"))
    encoder, carried = _best(place, model, made, earlier, fitted)
    if not any(part.weights for part in carried):
        reason = f"no weight of {run.start['version']} fits this module"
        return Beginning(fitted, scratch.weights, _scratch(reason))
    return Beginning(encoder, tuple(part.weights for part in carried), _facts(run, earlier, encoder, carried))


def _best(
    place: Place, model: Any, made: Mapping[str, bytes], earlier: Encoder, fitted: Encoder
) -> tuple[Encoder, list[start.Carried]]:
    """With new values where every weight fits all the same; else without, where that makes every weight fit; else as much as fits."""
    objective, tried = place.pipeline.label.objective, list[tuple[Encoder, list[start.Carried]]]()
    for encoder in (continuing.continued(earlier, fitted), earlier):
        carried = [_carried(part, at, made, earlier, encoder, objective) for at, part in enumerate(model.members)]
        if not any(part.fresh for part in carried):
            return encoder, carried
        tried.append((encoder, carried))
    return tried[0]


def _scratch(reason: str) -> dict[str, Any]:
    return {"from": "scratch", "because": reason, "warm": 0}


def _facts(run: runs.Run, earlier: Encoder, encoder: Encoder, carried: Sequence[start.Carried]) -> dict[str, Any]:
    grown = {
        now.name: now.size - before.size
        for before, now in zip(earlier.categories, encoder.categories, strict=True)
        if now.size > before.size
    }
    return {
        "from": run.start["version"],
        "champion_weights": run.start["weights"],
        "weights": [checkpoint.digest(part.weights) for part in carried],
        "carried": sum(len(part.weights) for part in carried),
        "fresh": sorted({name for part in carried for name in part.fresh}),
        "new_values": grown,
        "warm": run.start["warm"] + 1,
    }


def _unlike(place: Place, spec: ModelSpec) -> str:
    line = place.pipeline
    if spec.features != tuple(to_spec(feature) for feature in line.features):
        return "the features are others"
    if Objective.from_json(spec.objective) != line.label.objective or (spec.label["column"], spec.label["above"]) != (
        line.label.column,
        line.label.above,
    ):
        return f"the label is another one ({line.label.objective.kind} of {line.label.column})"
    return ""


def _carried(
    part: Torch, at: int, made: Mapping[str, bytes], earlier: Encoder, encoder: Encoder, objective: Objective
) -> start.Carried:
    weights = start.read(made[files.WEIGHTS], at)
    wanted = start.shapes(part, encoder.shape, objective)
    return start.carried(weights, wanted, earlier.cardinalities, continuing.sources(earlier, encoder))


def weights(place: Place, run: runs.Run, data: Rows) -> Floats | None:
    """What the pipeline's weighers say about the rows that train, [those], of mean 1; None without weighers.

    Raises TrainingFailed when one of them raises, or gives what is no weight.
    """
    line, mask = place.pipeline, data.split.train
    if not line.weights:
        return None
    profiled = profiled_by(line)
    for part in line.weights:
        if isinstance(part, weighing.Drifted) and (missing := sorted(set(part.by) - set(profiled))):
            raise TrainingFailed(
                f"ct.drifted of {missing}", f"segments that are category features too: {list(profiled)}", "declare the feature"
            )
    scores, moved = _seen(place, run, data)
    rows = Weighed(
        times=data.times[mask],
        keys=data.keys[mask],
        segments=take(data.segments, mask),
        features=take(data.columns, mask),
        label=data.label[mask],
        scores=scores,
        drift=moved,
        objective=line.label.objective,
    )
    try:
        return weighing.combined(line.weights, rows)
    except InvalidPipeline as error:
        raise TrainingFailed(error.found, error.expected, error.remedy) from error
    except Exception as error:  # a user's weigher may raise anything; it is reported, not traced
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise TrainingFailed(
            f"a weigher raised {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",
            "weights [n]",
            "mend its weights()",
        ) from error


def _seen(place: Place, run: runs.Run, data: Rows) -> tuple[Floats | None, dict[str, dict[str, float]]]:
    """The champion's scores of the rows that train, and how far its slices have drifted since it was trained; nothing where its features
    cannot be had any more, of which the gate will speak."""
    if not run.start:
        return None, {}
    champion = predictor(place, files.fetch(place.artifacts, run.start["manifest"]))
    try:
        columns = seen_by(place, champion, data)
    except InvalidPipeline:
        return None, {}
    before = runs.get(place.journal, place.pipeline.name, run.start["run"])
    moved = _drift(place, before, {name: columns[name] for name in champion.encoder.names}, data) if before else {}
    if Objective.from_json(champion.spec.objective) != place.pipeline.label.objective:
        return None, moved
    return champion.score_features(take(columns, data.split.train)), moved


def _drift(place: Place, before: runs.Run, columns: Mapping[str, NDArray[Any]], data: Rows) -> dict[str, dict[str, float]]:
    """{segment: {value: effect}} of the training rows that are newer than the champion's, against those it was trained on.

    A slice's effect is that of its most drifted feature, 0 where none drifted beyond noise.
    """
    new = newer(before, data)
    by = tuple(name for name in profiled_by(place.pipeline) if name in columns)
    if new is None or "profile" not in before.facts:
        return {}
    reference = Profiles.from_bytes(place.artifacts.get(before.facts["profile"]))
    found = drift.compare_slices(reference, Profiles.of(take(columns, new), by, reference))
    effect = np.where(found.drifted, found.effect, 0.0).max(axis=1, initial=0.0)
    made: dict[str, dict[str, float]] = {}
    for (segment, value), size in zip(found.slices, effect.tolist(), strict=True):
        made.setdefault(segment, {})[value] = float(size)
    return made


def newer(before: runs.Run, data: Rows) -> NDArray[np.bool_] | None:
    """Training rows of times that the champion's run did not train on, [n]; None when they are too few to say anything."""
    until = before.facts.get("trained_until")
    if until is None:
        return None
    new = data.split.train & (data.times >= until)
    return new if new.sum() >= _FEWEST else None


def label_rates(objective: Objective, label: Floats) -> list[float]:
    """The share of each class among labels [n]; of numbers, their mean and deviation."""
    if objective.kind in ("binary", "classes"):
        return [float((label == at).mean()) for at in range(max(2, objective.outputs))]
    return [float(label.mean()), float(label.std())]


def check_labels(place: Place, run: runs.Run, data: Rows) -> None:
    """Raises TrainingFailed, "invalid", when the labels that are new since the champion's training differ from those it learned, beyond
    noise and by more than the pipeline's `label_jump`. A run that accepts "labels" is not refused."""
    before = runs.get(place.journal, place.pipeline.name, run.start["run"]) if run.start else None
    new = newer(before, data) if before is not None else None
    if before is None or new is None or "labels" in run.accepts:
        return
    line = place.pipeline
    said = jumped(line.label.objective, before.facts.get("label_rates", []), data.label[new], line.label_jump)
    if said:
        raise TrainingFailed(
            f"{said}, in {int(new.sum()):,} rows that came since {run.start['version']} was trained",
            f"at most {line.label_jump:g} times, or no more than chance",
            "look at the labels' source; if they are right, train with --accept-labels",
            state="invalid",
        )


def jumped(objective: Objective, before: Sequence[float], label: Floats, limit: float) -> str:
    """What has jumped from the rates `before` to those of `label` [n], "" when nothing did.

    The odds of a class (with half a row added on either side) that changed by more than the factor `limit`, and whose share is more than 4 standard
    errors away; a mean that is more than `limit` deviations, and 4 standard errors, away.
    """
    now, count = label_rates(objective, label), len(label)
    if len(before) != len(now):
        return ""
    if objective.kind not in ("binary", "classes"):
        error = before[1] / math.sqrt(count)
        moved = abs(now[0] - before[0])
        found = before[1] > 0 and moved > limit * before[1] and moved > NOISE * error
        return f"the labels' mean went from {before[0]:.4g} (± {before[1]:.4g}) to {now[0]:.4g}" if found else ""
    names = objective.classes or ("0", "1")
    for name, was, share in reversed(list(zip(names, before, now, strict=True))):
        odds = [(part * count + 0.5) / ((1 - part) * count + 0.5) for part in (was, share)]
        error = math.sqrt(max(was * (1 - was), 1 / count) / count)
        if max(odds[0] / odds[1], odds[1] / odds[0]) > limit and abs(share - was) > NOISE * error:
            return f"the share of label {name} went from {was:.2%} to {share:.2%}"
    return ""
