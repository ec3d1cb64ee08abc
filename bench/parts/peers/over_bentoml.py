"""BentoML with two workers: `bentoml serve bench.parts.peers.over_bentoml:Score`."""

from typing import Any

import bentoml

from bench.parts.plainly import Model


def _begin(self: Any) -> None:
    self.model = Model()


def predict(self: Any, row: dict[str, Any]) -> dict[str, float]:
    """One row."""
    return {"score": self.model.score(row)}


Scores = type("Scores", (), {"__init__": _begin, "predict": bentoml.api(predict)})
Score = bentoml.service(workers=2, logging={"access": {"enabled": False}}, metrics={"enabled": False})(Scores)
