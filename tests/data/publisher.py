"""Run as a script: `publisher.py PROJECT NAME COUNT` waits for PROJECT/go, then publishes COUNT shards of its own and one that all have.

The settings come from the environment.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pyarrow as pa

from ct import settings
from ct.data.tables import Warehouse


def shard(name: str) -> pa.Table:
    """Ten rows that tell where they come from."""
    return pa.table({"id": pa.array([f"{name}-{i}" for i in range(10)]), "x": pa.array([float(i) for i in range(10)])})


def main(root: Path, name: str, count: int) -> None:
    warehouse = Warehouse(settings.load(root))
    (root / f"{name}.ready").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    for attempt in [*(f"{name}-{at}" for at in range(count)), "shared"]:
        warehouse.append("t", shard(attempt), attempt=attempt)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
