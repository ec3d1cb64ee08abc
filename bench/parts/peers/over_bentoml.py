"""BentoML with two workers: `bentoml serve over_bentoml:Score`."""

import bentoml
from plainly import Model


@bentoml.service(workers=2, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Score:
    """The model."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def predict(self, row: dict) -> dict:
        """One row."""
        return {"score": self.model.score(row)}
