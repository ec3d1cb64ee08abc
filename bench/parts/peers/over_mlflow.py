"""MLflow's scoring server: `python over_mlflow.py FOLDER` writes the model, `mlflow models serve -m FOLDER --workers 2` serves it."""

import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from plainly import Model


class Scores(mlflow.pyfunc.PythonModel):
    """The model."""

    def load_context(self, context: Any) -> None:
        """Load it."""
        self.model = Model()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[float]:
        """Rows."""
        return [self.model.score(row) for row in model_input.to_dict("records")]


if __name__ == "__main__":
    here = Path(__file__).parent
    mlflow.pyfunc.save_model(
        sys.argv[1], python_model=Scores(), code_paths=[str(here.parent / "plainly.py")], pip_requirements=[]
    )
