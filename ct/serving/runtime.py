"""A verified set of model files as something that predicts: on ONNX Runtime, on torch, or as machine code. Knows nothing of routes or HTTP.

Torch is loaded only where it runs a version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ct.errors import Corrupt, CtError, Unavailable
from ct.features.declare import from_spec, needs_code, own_features
from ct.features.encode import CLIP, Encoder
from ct.features.kinds.own import Own
from ct.features.transform import lookups_of, transform
from ct.objectives import Calibration, Objective
from ct.registry import files
from ct.registry.code import loaded
from ct.registry.files import ModelSpec
from ct.roles import Columns, Feature, History, Lookup
from ct.settings import Settings

TOLERANCE = 1e-5
"""How far golden rows may be off, in the size of the scores (objectives.Calibration.gap)."""
LARGE_BYTES = 32 << 20
"""A graph of so many bytes is parted in another process before it is loaded, see `_parted`."""
BATCHES = (1, 2, 4, 8, 16, 32)
"""Sizes of the batches that a version is warmed up with; requests are scored together in no larger ones (passes.INLINE_ROWS)."""
ONNX, TORCH, AOT = "onnx", "torch", "aot"
ORDER = {ONNX: (ONNX, TORCH), TORCH: (TORCH, ONNX), AOT: (AOT, TORCH, ONNX)}
"""Of each runtime that can be asked for, itself and what stands in for it, in order."""
_CHUNK = 65_536
_PART = """
import sys, onnx
model = onnx.load_model_from_string(sys.stdin.buffer.read())
onnx.save_model(model, sys.argv[1], save_as_external_data=True, all_tensors_to_one_file=True, location="weights", size_threshold=1024)
"""


class Engine(Protocol):
    """What computes scores. Safe for several threads."""

    @property
    def name(self) -> str:
        """The runtime: one of ORDER."""
        ...

    def run(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[Any]:
        """Scores [n] or [n, k] of numeric [n, F] and category [n, C]."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Which runtime is asked for, and the folder on this node's disk where machine code is kept (none: there can be none)."""

    runtime: str = ONNX
    folder: Path | None = None

    @staticmethod
    def of(settings: Settings) -> Wanted:
        """What a project's settings ask for."""
        return Wanted(settings.runtime, settings.home / "compiled")


USUAL = Wanted()


@dataclass(frozen=True)
class Predictor:
    """One model version, ready to score. Safe for several threads."""

    spec: ModelSpec
    features: tuple[Feature, ...]
    encoder: Encoder
    engine: Engine | None
    golden: Mapping[str, Any] = field(repr=False, compare=False)
    instead: str = ""
    """Why it runs on another runtime than was asked for; "" when it does not."""

    near: ClassVar[bool] = True
    """Does it run in this process?"""

    @staticmethod
    def load(made: Mapping[str, bytes], code: Callable[[], Mapping[str, Own]] = dict, wanted: Wanted = USUAL) -> Predictor:
        """The predictor of a version's files, its golden rows checked. Raises Corrupt when they come out differently.

        `made` must be verified, or just made: a user's own feature functions come from its archive of code, which is run, and only for
        a version that has some; so does a user's own module where torch runs it. `code` gives functions at hand, which serve where they
        have the very same source. It runs on the `wanted` runtime, or on what stands in for it where that cannot hold the version.
        """
        spec = ModelSpec.from_bytes(made[files.SPEC])
        engine, instead = engine_of(made, spec, wanted)
        predictor = Predictor(
            spec=spec,
            features=features_of(spec, made[files.CODE], code),
            encoder=Encoder.from_json(made[files.ENCODER]),
            engine=engine,
            golden=json.loads(made[files.GOLDEN]),
            instead=instead,
        )
        predictor.check()
        return predictor

    @property
    def version(self) -> str:
        """The version's name."""
        return self.spec.version

    @property
    def threshold(self) -> float:
        """The score from which the predicted label is 1."""
        return self.spec.threshold

    @cached_property
    def objective(self) -> Objective:
        """What it predicts."""
        return Objective.from_json(self.spec.objective)

    @cached_property
    def lookups(self) -> tuple[Lookup, ...]:
        """The histories that the features read, each once."""
        return lookups_of(self.features)

    @property
    def runtime(self) -> str:
        """What runs it: one of ORDER."""
        assert self.engine is not None, "it runs here"
        return self.engine.name

    @cached_property
    def own_code(self) -> bool:
        """Does it run functions of the user's, or torch a module of the user's? A graph and machine code are none."""
        own = any("ready" not in part for part in self.spec.model.get("parts", ()))
        return any(needs_code(feature) for feature in self.spec.features) or (own and self.runtime == TORCH)

    @cached_property
    def steady(self) -> bool:
        """Has a row the same bits in any company? Measured once, on drawn rows; a user's own code is not asked. Only then rows are scored together."""
        if self.own_code:
            return False
        chance = np.random.default_rng(7)
        numeric = np.clip(chance.normal(size=(37, len(self.encoder.numeric_names))), -CLIP, CLIP).astype(np.float32)
        sizes = [part.size for part in self.encoder.categories]
        category = chance.integers(0, np.array(sizes, dtype=np.int64), size=(37, len(sizes)))

        def run(size: int) -> bytes:
            parts = [self._run(numeric[at : at + size], category[at : at + size]) for at in range(0, 37, size)]
            return np.concatenate(parts).tobytes()

        try:
            return len({run(size) for size in (1, 2, 3, 7, 16, 37)}) == 1
        except Exception:  # a model that fails for drawn rows is judged by real ones, each alone
            return False

    def transform(self, rows: Columns, times: NDArray[np.int64], history: History) -> dict[str, NDArray[Any]]:
        """The feature columns of n rows at `times` [n] (microseconds UTC)."""
        return transform(self.features, rows, times, history)

    def score_features(self, columns: Columns) -> NDArray[np.float64]:
        """Scores for feature columns, [n] or [n, k] as its objective says."""
        numeric, category = self.encoder.numeric(columns), self.encoder.category(columns)
        if 0 < len(numeric) <= _CHUNK:
            return self._run(numeric, category).astype(np.float64)
        scores = [self._run(numeric[at : at + _CHUNK], category[at : at + _CHUNK]) for at in range(0, len(numeric), _CHUNK)]
        none = np.empty((0, self.objective.outputs) if self.objective.outputs > 1 else 0)
        return np.concatenate(scores or [none]).astype(np.float64)

    def score(
        self, rows: Columns, times: NDArray[np.int64], history: History
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """Scores [n] or [n, k], and the feature columns they come from."""
        columns = self.transform(rows, times, history)
        return self.score_features(columns), columns

    async def ask(
        self, rows: Columns, times: NDArray[np.int64], history: History
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """As `score`, awaited: for a version that runs elsewhere (not `near`). Raises Unavailable where it does not answer."""
        return self.score(rows, times, history)

    def _run(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[Any]:
        assert self.engine is not None, "it runs here"
        return self.engine.run(numeric, category)

    def check(self, rows: int | None = None) -> None:
        """Score the golden rows, or the first few. Raises Corrupt when they come out differently than at training."""
        self._compare(np.arange(len(self.golden["score"]))[:rows])

    def warm(self) -> None:
        """Score golden rows in batches of BATCHES rows, as requests will come: what a runtime makes ready at the first batch of a size is made
        ready now. Raises Corrupt when they come out differently in one than at training."""
        count = len(self.golden["score"])
        for size in BATCHES if count else ():
            self._compare(np.arange(size) % count)

    def _compare(self, taken: NDArray[np.intp]) -> None:
        values, columns = self.golden["features"], dict[str, NDArray[Any]]()
        for name in self.encoder.names:
            known = [values[name][at] for at in taken]
            columns[name] = np.array(known, dtype=object if name in self.encoder.texts else np.float64)
        expected = np.array([self.golden["score"][at] for at in taken], dtype=np.float64)
        found = self.score_features(columns)
        outputs = self.objective.outputs
        if found.shape != expected.shape or found.shape != (len(taken), outputs)[: 1 + (outputs > 1)]:
            raise Corrupt(
                f"{self.version} gives scores of the shape {list(found.shape)} for {len(taken)} rows",
                f"{outputs} for each row, as its objective {self.objective.kind!r} says",
                "export the version again",
            )
        gap = Calibration.from_json(self.spec.calibration).gap(self.objective, found, expected)
        if not gap <= TOLERANCE:
            far = np.nan_to_num(np.abs(found - expected), nan=np.inf).reshape(len(taken), -1).max(axis=1)
            worst = int(far.argmax())
            raise Corrupt(
                f"the golden rows of {self.version} come out {gap:.1e} away from what was trained, on {self.runtime} in a batch of {len(taken)}: "
                f"row {taken[worst]} gives {found[worst].tolist()}, not {expected[worst].tolist()}",
                f"at most {TOLERANCE:.0e}",
                "export the version again, or serve it on the kind of machine it was exported for",
            )


def features_of(spec: ModelSpec, archive: bytes, code: Callable[[], Mapping[str, Own]] = dict) -> tuple[Feature, ...]:
    """A version's features; see `Predictor.load`. Raises Corrupt for a function that neither `code` nor the archive has."""
    if not any(needs_code(feature) for feature in spec.features):
        return tuple(from_spec(feature) for feature in spec.features)
    given = code()
    try:
        return tuple(from_spec(feature, given) for feature in spec.features)
    except Corrupt:
        line = loaded(archive)
        given = {**given, **(own_features(line.features) if line else {})}
        return tuple(from_spec(feature, given) for feature in spec.features)


def engine_of(made: Mapping[str, bytes], spec: ModelSpec, wanted: Wanted) -> tuple[Engine, str]:
    """What runs a version: the wanted runtime, or the first that can hold it of those that stand in for it, and then why.

    Raises Corrupt when none can.
    """
    makers: dict[str, Callable[[], Engine]] = {
        ONNX: lambda: _onnx(made, spec),
        TORCH: lambda: _eager(made, spec),
        AOT: lambda: _compiled(made, spec, wanted.folder),
    }
    faults: list[tuple[str, CtError]] = []
    for name in ORDER[wanted.runtime]:
        try:
            return makers[name](), "; ".join(f"{runtime}: {fault.found}" for runtime, fault in faults)
        except (Corrupt, Unavailable) as error:
            faults.append((name, error))
    graph = dict(faults)[ONNX]
    if not spec.model:
        raise graph
    raise Corrupt("; ".join(fault.found for _, fault in faults), graph.expected, graph.remedy) from None


def _onnx(made: Mapping[str, bytes], spec: ModelSpec) -> Engine:
    if files.ONNX not in made:
        raise Corrupt(f"there is no graph: {spec.graph or 'the files hold none'}", "an ONNX graph", "export the version again")
    session = _session(made[files.ONNX])
    return _Graph(session, tuple(node.name for node in session.get_inputs()))


def _eager(made: Mapping[str, bytes], spec: ModelSpec) -> Engine:
    if not spec.model:  # torch need not be loaded to find that out
        raise Corrupt("the spec does not say how the module is built", "a recipe", "train again, with a class that has a name")
    from ct.models.restoring import Eager, restored

    return Eager(restored(made))


def _compiled(made: Mapping[str, bytes], spec: ModelSpec, folder: Path | None) -> Engine:
    if not spec.model:
        raise Corrupt("the spec does not say how the module is built", "a recipe", "train again, with a class that has a name")
    if folder is None:
        raise Unavailable("machine code can be kept nowhere here", "a folder on this node's disk", "name one")
    from ct.serving import compiled

    return compiled.engine(made, folder)


def prepare(made: Mapping[str, bytes], wanted: Wanted) -> None:
    """Whatever takes long before the version with these verified files can be loaded: compiling it, so that nobody else's loading waits for that."""
    if wanted.runtime == AOT and wanted.folder is not None and ModelSpec.from_bytes(made[files.SPEC]).model:
        from ct.serving import compiled

        with suppress(Unavailable, Corrupt):  # loading meets it again and takes what stands in
            compiled.packaged(made, wanted.folder)


@dataclass(frozen=True)
class _Graph:
    """An ONNX graph as ONNX Runtime runs it, on one thread."""

    session: onnxruntime.InferenceSession
    names: tuple[str, ...]
    name: str = ONNX

    def run(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[Any]:
        given: dict[str, NDArray[Any]] = {"numeric": numeric, "category": category}
        scores: NDArray[Any] = self.session.run(["score"], {name: given[name] for name in self.names})[0]
        return scores


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        if len(graph) < LARGE_BYTES:
            return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(prefix="ct-graph-") as folder:
            return onnxruntime.InferenceSession(_parted(graph, folder), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Corrupt(f"the model's graph cannot be read: {said}", "an ONNX graph", "export the version again") from None


def _parted(graph: bytes, folder: str) -> str:
    """A large graph's path in `folder`, its weights in a file beside it.

    ONNX Runtime reads a graph with the interpreter's lock held: 366 MiB stopped every request of the process for 0.6 to 1.5 s. Parted by another
    process, the same graph stops them for 0.08 s, for weights in a file are read without the lock. Raises OSError when the child fails.
    """
    path = str(Path(folder) / "model.onnx")
    done = subprocess.run([sys.executable, "-c", _PART, path], input=graph, capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(f"it cannot be parted: {last[0] if last else done.returncode}")
    return path
