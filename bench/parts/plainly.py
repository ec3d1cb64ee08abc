"""The tiny model as someone serves it by hand: orjson, numpy, ONNX Runtime, no ct. Shared by the bare deployment, the router pattern and the peers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson


class Model:
    """The model of a folder that holds model.onnx and encoder.json (CT_BENCH_MODEL by default)."""

    def __init__(self, folder: str = "") -> None:
        place = Path(folder or os.environ["CT_BENCH_MODEL"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(place / "model.onnx"), options, providers=["CPUExecutionProvider"])
        encoder = json.loads((place / "encoder.json").read_text())
        self._scales = encoder["scales"]
        category = encoder["categories"][0]
        self._words = dict.fromkeys(category["rare"], 2) | {word: at for at, word in enumerate(category["values"], 3)}

    def score(self, row: dict[str, Any]) -> float:
        """The score of one row."""
        numbers: list[float] = []
        for scale in self._scales:
            value = row.get(scale["name"])  # what the row does not carry is missing, as for a bus of which nothing is known
            absent = value is None or not math.isfinite(value)
            clip = scale["clip"] or math.inf
            numbers.append(0.0 if absent else max(-clip, min(clip, (value - scale["mean"]) / scale["deviation"])))
            if scale["flagged"]:
                numbers.append(float(absent))
        word = row.get("line")
        given = {
            "numeric": np.array([numbers], dtype=np.float32),
            "category": np.array([[0 if word is None else self._words.get(word, 1)]], dtype=np.int64),
        }
        return float(self._session.run(["score"], given)[0][0])

    def answer(self, body: bytes) -> bytes:
        """A request's body → the answer's."""
        return orjson.dumps({"score": self.score(orjson.loads(body))})
