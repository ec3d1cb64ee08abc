"""MLflow's scoring server: `python over_mlflow.py FOLDER` writes the model, `mlflow models serve -m FOLDER --workers 2` serves it."""

from __future__ import annotations

import sys
from typing import Any

import mlflow
import pandas as pd

from bench.parts.plainly import Model


def _load(self: Any, context: Any) -> None:
    self.model = Model()


def _predict(self: Any, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[float]:
    return [self.model.score(row) for row in model_input.to_dict("records")]


Scores = type("Scores", (mlflow.pyfunc.PythonModel,), {"__module__": __name__, "load_context": _load, "predict": _predict})

if __name__ == "__main__":
    mlflow.pyfunc.save_model(sys.argv[1], python_model=Scores(), pip_requirements=[])
