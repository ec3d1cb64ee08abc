"""Makes a version again from what was recorded of it, and says whether the same came out, how far off it is, or which input diverged.

The recorded code runs, out of the version's signed archive and in a process of its own, on the recorded shards, in a scratch folder.
Nothing is registered; the journal gets one event, Reproduced.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

import ct
from ct.control import retrain, runs
from ct.control.place import Place, Step
from ct.data import catalog
from ct.errors import Corrupt, CtError, NotFound, TrainingFailed
from ct.ids import sha256
from ct.registry import files, versions
from ct.registry.code import Code
from ct.store.files import digest
from ct.store.journal import New
from ct.store.signing import without_key
from ct.training.code import own_digest

IDENTICAL, WITHIN, DIVERGED = "identical", "within tolerance", "diverged"
TOLERANCE = 0.01
"""So far may a score lie from the recorded one under another numeric contract."""
_EXIT = {IDENTICAL: 0, WITHIN: 3, DIVERGED: 4}


@dataclass(frozen=True)
class Difference:
    """One recorded input that came out differently."""

    what: str
    recorded: str
    found: str


@dataclass(frozen=True)
class Answer:
    """What came of making `version` again. `differs` are inputs that differ, `contract` entries of the numeric contract that do, and `ct`
    where its own source is another.

    `gaps` are the largest differences of weights and of the golden rows' scores, absolute, and relative to the largest recorded value
    of the same tensor; empty where none could be taken. `notes` change nothing of the outcome.
    """

    version: str
    run: str
    outcome: str
    differs: tuple[Difference, ...] = ()
    contract: tuple[Difference, ...] = ()
    gaps: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 identical, 3 within tolerance, 4 diverged."""
        return _EXIT[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self)


def reproduce(place: Place, version: str, *, workers: int = 0, tolerance: float = TOLERANCE, on_step: Step) -> Answer:
    """Make a version again and compare. `workers` may be another number than it was trained with.

    Raises NotFound when there is no such version or nothing to make it from was recorded, Untrusted or Corrupt when its files are not
    what was signed, TrainingFailed when the recorded code cannot be run here.
    """
    begun, line = monotonic(), place.pipeline
    known = versions.get(place.journal, line.name, version)
    run = next(item for item in runs.all_runs(place.journal, line.name) if item.id == known.run)
    if "training_set" not in run.facts:
        raise NotFound(f"{version} was trained before its inputs were recorded", "a version of a newer ct", "train again")
    on_step("verifying what was recorded")
    made = files.fetch(place.artifacts, known.manifest)
    wrong = [*_shards(place, run), *_recorded(run, made)]
    notes = _notes(place, run)
    if wrong:  # whatever came out would not be this version
        answer = Answer(version, run.id, DIVERGED, tuple(wrong), notes=notes)
    else:
        found, again = _made_again(place, run, made[files.CODE], workers, on_step)
        answer = compared(version, run, made, found, again, tolerance=tolerance, notes=notes)
    answer = Answer(**{**vars(answer), "seconds": round(monotonic() - begun, 2)})
    _record(place, known, answer)
    return answer


def compared(
    version: str,
    run: runs.Run,
    made: Mapping[str, bytes],
    found: Mapping[str, Any],
    again: Mapping[str, bytes],
    *,
    tolerance: float = TOLERANCE,
    notes: tuple[str, ...] = (),
) -> Answer:
    """The answer, from what a run recorded and `made`, and what was `found` on the way when its files were made `again`. Pure."""
    facts = run.facts
    expected = {"pipeline": run.pipeline, "features": facts["features"], "training set": facts["training_set"]}
    differs = [Difference(name, said, found[name]) for name, said in expected.items() if said != found[name]]
    before, now = facts["contract"], found["contract"]
    contract = [
        Difference(name, str(before.get(name, "")), str(now.get(name, "")))
        for name in sorted({*before, *now} - {"id"})
        if before.get(name) != now.get(name)
    ]
    if facts.get("ct") != found["ct"]:
        contract.append(Difference("ct", str(facts.get("ct", "not recorded")), found["ct"]))
    gaps = _gaps(made, again)
    if found["weights"] == facts["weights"]:
        outcome = IDENTICAL
    elif differs:
        outcome = DIVERGED
    elif contract and gaps and gaps["scores"] <= tolerance:
        outcome = WITHIN
    else:
        outcome = DIVERGED
        if not contract:
            differs = [Difference("nothing that is recorded", facts["weights"], found["weights"])]
    same = {name: made[name] == again[name] for name in sorted(made) if name in again}
    return Answer(version, run.id, outcome, tuple(differs), tuple(contract), gaps, same, notes)


def last(place: Place, version: str) -> dict[str, Any] | None:
    """What came of making a version again the last time: outcome, when and by whom; None when nobody has."""
    told = [event for event in place.journal.read(_stream(place)) if event.data["version"] == version]
    if not told:
        return None
    return {"outcome": told[-1].data["outcome"], "at": told[-1].at.isoformat(timespec="seconds"), "by": told[-1].actor}


def _stream(place: Place) -> str:
    return f"reproduced/{place.pipeline.name}"


def _record(place: Place, known: versions.Version, answer: Answer) -> None:
    data = {"version": known.name, "manifest": known.manifest, **answer.to_json()}
    place.journal.append(_stream(place), [New("Reproduced", data)])


def _shards(place: Place, run: runs.Run) -> list[Difference]:
    """The shards that are gone, have lost rows since the run began, or whose stored bytes have changed."""
    started = place.journal.read(runs.stream(place.pipeline.name), types=["RunStarted"])
    began = next(event.seq for event in started if event.data["run"] == run.id)
    found = []
    for table, digests in run.shards.items():
        before = {shard.sha256: shard for shard in catalog.arrived(place.journal, table, until=began)}
        there = {shard.sha256: shard for shard in catalog.resolve(place.journal, table, digests)}
        for name in digests:
            shard = there.get(name)
            if shard is None or not shard.path:
                found.append(Difference(f"shard {name[:12]} of {table}", name, "gone"))
            elif shard.identity != before[name].identity:
                found.append(Difference(f"shard {shard.shard} of {table}", name, "rows were erased, or have expired"))
            elif shard.file_sha256 and (now := _digest(shard.path)) != shard.file_sha256:
                found.append(Difference(f"shard {shard.shard} of {table}", shard.file_sha256, now))
    return found


def _digest(address: str) -> str:
    try:
        return digest(address)
    except NotFound:
        return "gone"


def _recorded(run: runs.Run, made: Mapping[str, bytes]) -> list[Difference]:
    found = sha256(made[files.CODE])
    return [] if found == run.code else [Difference("code", run.code, found)]


def _notes(place: Place, run: runs.Run) -> tuple[str, ...]:
    """Is today's working copy what the version was made with? It does not matter for the outcome, but for whoever reads it."""
    try:
        now = sha256(retrain.code(place).to_bytes())
    except CtError as error:
        return (f"today's code cannot be read: {error.found}",)
    return () if now == run.code else ("today's code differs from the recorded one, which was run",)


def _made_again(
    place: Place, run: runs.Run, archive: bytes, workers: int, on_step: Step
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Run the recorded code on the recorded inputs: what was found on the way, and the files."""
    code = Code.from_bytes(archive)
    if not code.main:
        raise NotFound(
            f"{run.id} recorded no pipeline file", "a pipeline that came from a file", "train from a file, by `ct train`"
        )
    work = place.settings.home / "work"  # which maintenance and erasure know
    work.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=work, prefix="reproduce-"))
    try:
        folders = code.write(scratch / "code")
        told = {
            "settings": place.settings.model_dump(mode="json")
            | {"state": str(scratch / "state"), "storage": "", "database_url": place.settings.database}
            | {"trusted_keys": list(place.artifacts.keys.counted())},
            "artifacts": place.settings.place("artifacts"),
            "pipeline": f"{scratch / 'code' / code.main}:{code.variable}",
            "run": run.id,
            "version": run.version,
            "workers": workers,
            "scratch": str(scratch),
        }
        on_step("training again, with the recorded code")
        _child(told, folders)
        if (scratch / "error.json").is_file():
            error = json.loads((scratch / "error.json").read_text())
            raise TrainingFailed(f"the recorded code stopped: {error['found']}", error["expected"], error["remedy"])
        found = json.loads((scratch / "found.json").read_text())
        return found, {path.name: path.read_bytes() for path in (scratch / "made").iterdir()}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _child(told: Mapping[str, Any], folders: tuple[Path, ...]) -> None:
    """A process that sees the recorded modules before any others, and not the working folder."""
    home = str(Path(ct.__file__).parents[1])
    paths = os.pathsep.join([*map(str, folders), home, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-c", "from ct.control.reproducing import main; main()"]
    done = subprocess.run(
        command,
        input=json.dumps(told),
        env=without_key(os.environ) | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        raise TrainingFailed(f"the process that trains again ended with {done.returncode}: {said}", "0", "see what it says")


def main() -> None:
    """The process of its own: what to do comes on standard input, what it found goes into the scratch folder."""
    told = json.loads(sys.stdin.read())
    scratch = Path(told["scratch"])
    try:
        _again(told, scratch)
    except CtError as error:
        (scratch / "error.json").write_text(json.dumps(error.as_dict()))


def _again(told: Mapping[str, Any], scratch: Path) -> None:
    from ct.control.act import Actor
    from ct.control.fitting import fit
    from ct.control.packing import files_of
    from ct.control.rows import rows
    from ct.pipeline import load
    from ct.settings import Settings
    from ct.store.artifacts import Artifacts
    from ct.store.signing import Keys

    settings, line = Settings.model_validate(told["settings"]), load(told["pipeline"])
    act = Actor(line, settings, actor="ct reproduce")
    act.ensure_ray()
    place = Place(line, settings, act.journal, Artifacts(told["artifacts"], Keys(settings.trusted_keys)))
    run = next(item for item in runs.all_runs(place.journal, line.name) if item.id == told["run"])
    data = rows(place, run, on_step=_silent)
    model = line.model.resolved(run.facts["settings"])
    fitted = fit(place, run, data, model, workers=told["workers"], gpu=act.gpu(), on_step=_silent)
    made = files_of(place, run, told["version"], data, fitted)
    (scratch / "made").mkdir()
    for name, content in made.items():
        (scratch / "made" / name).write_bytes(content)
    found = {
        "pipeline": line.fingerprint(),
        "features": data.digest,
        "training set": retrain.training_set(place, run),
        "weights": fitted.trained.digest,
        "contract": dict(fitted.trained.contract),
        "ct": own_digest(),
    }
    (scratch / "found.json").write_text(json.dumps(found))
    act.close()


def _silent(_: str) -> None: ...


def _gaps(made: Mapping[str, bytes], again: Mapping[str, bytes]) -> dict[str, float]:
    """The largest differences of weights and golden scores; none where names or shapes differ."""
    from safetensors.numpy import load

    before, now = load(made[files.WEIGHTS]), load(again[files.WEIGHTS])
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in now.items()}:
        return {}
    each = [_gap(value, now[name]) for name, value in before.items()]
    golden = [json.loads(found[files.GOLDEN]) for found in (made, again)]
    scores = [np.asarray(found["score"], dtype=np.float64) for found in golden]
    if golden[0]["features"] != golden[1]["features"] or scores[0].shape != scores[1].shape:
        return {}
    whole, relative = _gap(scores[0], scores[1])
    return {
        "weights": max((gap for gap, _ in each), default=0.0),
        "weights_relative": max((gap for _, gap in each), default=0.0),
        "scores": whole,
        "scores_relative": relative,
    }


def _gap(before: Any, now: Any) -> tuple[float, float]:
    """The largest absolute difference, and its share of the largest recorded value."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise Corrupt("weights or scores that are no numbers", "finite numbers", "see the run that made them")
    gap = float(np.abs(first - second).max(initial=0.0))
    size = float(np.abs(first).max(initial=0.0))
    return gap, gap / size if size else gap
