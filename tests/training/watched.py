"""A small module for tests of sweeps: it notes what its process holds in memory, and fails or dies when told to."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


class Watched(nn.Module):
    """Two layers. `fault` in training: "raise", "nan", "kill" (once for all processes that share `notes`) or "always"."""

    def __init__(self, *, numeric: int, cardinalities: list[int], width: int = 8, fault: str = "", notes: str = "") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(numeric, width), nn.Linear(width, 1)
        self.fault, self.notes, self.calls = fault, notes, 0

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        if self.training and self.calls % 20 == 0:
            self._act()
        found: Tensor = self.last(torch.relu(self.first(numeric))).squeeze(-1)
        return found * float("nan") if self.fault == "nan" and self.training else found

    def _act(self) -> None:
        if self.fault == "raise":
            raise KeyError("no such luck")
        if self.fault == "always" or (self.fault == "kill" and not Path(f"{self.notes}.killed").exists()):
            with Path(f"{self.notes}.{'killed' if self.fault == 'kill' else 'always'}").open("a") as file:
                file.write("dies\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.notes and not self.fault:
            with Path(self.notes).open("a") as file:
                file.write(json.dumps({"pid": os.getpid(), "trial": id(self), **_memory()}) + "\n")


def _memory() -> dict[str, int]:
    """Bytes of the training rows' numeric.npy that are mapped here and in memory, how many of them are copies, and the largest piece of
    memory of the process's own."""
    mapped = own = largest = 0
    inside = heap = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside, heap = line.endswith("/train/numeric.npy"), line.endswith("[heap]")
        name, _, value = line.partition(":")
        size = int(value.split()[0]) * 1024 if name in ("Rss", "Anonymous") else 0
        if inside:
            mapped += size * (name == "Rss")
            own += size * (name == "Anonymous")
        largest = max(largest, size * (name == "Anonymous" and not heap))
    return {"mapped": mapped, "own": own, "largest": largest}
