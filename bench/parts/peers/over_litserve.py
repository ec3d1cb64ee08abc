"""LitServe with two API processes and two workers: `python over_litserve.py PORT`."""

from __future__ import annotations

import sys
from typing import Any

import litserve

from bench.parts.plainly import Model


def _setup(self: Any, device: str) -> None:
    self.model = Model()


def _predict(self: Any, row: dict[str, Any]) -> dict[str, float]:
    return {"score": self.model.score(row)}


Api = type("Api", (litserve.LitAPI,), {"__module__": __name__, "setup": _setup, "predict": _predict})

if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", num_api_servers=2, generate_client_file=False, log_level="warning")
