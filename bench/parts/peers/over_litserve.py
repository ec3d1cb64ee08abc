"""LitServe with two API processes and two workers: `python over_litserve.py PORT`."""

import sys
from typing import Any

import litserve
from plainly import Model


class Api(litserve.LitAPI):
    """The model."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.model = Model()

    def predict(self, row: dict[str, Any]) -> dict[str, float]:
        """One row."""
        return {"score": self.model.score(row)}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", num_api_servers=2, generate_client_file=False, log_level="warning")
