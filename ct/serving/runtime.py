"""A verified set of model files as something that predicts, on ONNX Runtime. Knows nothing of routes or HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ct.errors import Corrupt
from ct.features.declare import from_spec, needs_code
from ct.features.encode import Encoder
from ct.features.kinds.own import Own
from ct.features.transform import lookups_of, transform
from ct.registry import files
from ct.registry.files import ModelSpec
from ct.roles import Columns, Feature, History, Lookup

TOLERANCE = 1e-5
_CHUNK = 65_536


@dataclass(frozen=True)
class Predictor:
    """One model version, ready to score. Safe for several threads."""

    spec: ModelSpec
    features: tuple[Feature, ...]
    encoder: Encoder
    session: onnxruntime.InferenceSession

    @staticmethod
    def load(made: Mapping[str, bytes], code: Callable[[], Mapping[str, Own]] = dict) -> Predictor:
        """The predictor of a version's files, its golden rows checked. Raises Corrupt when they come out differently.

        `code` gives the users' own feature functions; it is asked only for a version that has some.
        """
        spec = ModelSpec.from_bytes(made[files.SPEC])
        own = code() if any(needs_code(feature) for feature in spec.features) else {}
        predictor = Predictor(
            spec=spec,
            features=tuple(from_spec(feature, own) for feature in spec.features),
            encoder=Encoder.from_json(made[files.ENCODER]),
            session=_session(made[files.ONNX]),
        )
        predictor._check(json.loads(made[files.GOLDEN]))
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
    def lookups(self) -> tuple[Lookup, ...]:
        """The histories that the features read, each once."""
        return lookups_of(self.features)

    def transform(self, rows: Columns, times: NDArray[np.int64], history: History) -> dict[str, NDArray[Any]]:
        """The feature columns of n rows at `times` [n] (microseconds UTC)."""
        return transform(self.features, rows, times, history)

    def score_features(self, columns: Columns) -> NDArray[np.float64]:
        """Scores in [0, 1], shape [n], for feature columns."""
        numeric, category = self.encoder.numeric(columns), self.encoder.category(columns)
        scores = [
            self.session.run(["score"], self._inputs(numeric[at : at + _CHUNK], category[at : at + _CHUNK]))[0]
            for at in range(0, len(numeric), _CHUNK)
        ]
        return np.concatenate(scores or [np.empty(0)]).astype(np.float64)

    def score(
        self, rows: Columns, times: NDArray[np.int64], history: History
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """Scores [n] and the feature columns they come from."""
        columns = self.transform(rows, times, history)
        return self.score_features(columns), columns

    def _inputs(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        given: dict[str, NDArray[Any]] = {"numeric": numeric, "category": category}
        return {node.name: given[node.name] for node in self.session.get_inputs()}

    def _check(self, golden: Mapping[str, Any]) -> None:
        values, columns = golden["features"], dict[str, NDArray[Any]]()
        for name in self.encoder.names:
            columns[name] = np.array(values[name], dtype=object if name in self.encoder.texts else np.float64)
        expected = np.array(golden["score"], dtype=np.float64)
        found = self.score_features(columns)
        gap = float(np.abs(found - expected).max(initial=0.0)) if found.shape == expected.shape else float("inf")
        if not gap <= TOLERANCE:
            raise Corrupt(
                f"the golden rows of {self.version} come out {gap:.1e} away from what was trained",
                f"at most {TOLERANCE:.0e}",
                "export the version again, or serve it on the kind of machine it was exported for",
            )


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
