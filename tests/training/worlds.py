"""Trains the same job in groups of 1, 2, 3, 4 and 8 real processes over gloo, and prints each case's digests as JSON. A script of its own,
because the numeric contract's environment must be set before torch is imported: `test_determinism.py` runs it once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the optimizers would import it, once in each child
from torch import Tensor, nn
from torch.nn import functional as nf

from ct.errors import CtError
from ct.features.encode import Shape
from ct.objectives import BINARY, Objective
from ct.training import building, checkpoint, determinism
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.determinism import Group
from ct.training.feed import Feed
from ct.training.learner import Learner

WORLDS = (3, 1, 2, 4, 8)
STEPS = 6


class Tables(nn.Module):
    """Two columns share one table of 300 ids, one has its own; batch norm and dropout, and the other path for a table if asked for."""

    def __init__(
        self, numeric: int, cardinalities: list[int], outputs: int = 1, padding: bool = False, tied: bool = False
    ) -> None:
        super().__init__()
        self.shared = nn.Embedding(cardinalities[0], 5)
        self.own = nn.Embedding(cardinalities[2], 3, padding_idx=0 if padding else None)
        self.tied = tied
        self.norm = nn.BatchNorm1d(numeric + 13)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(numeric + 13, 33)
        self.last = nn.Linear(33, outputs)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        pair = self.shared(category[:, :2]).flatten(1)
        own = nf.embedding(category[:, 2], self.own.weight) if self.tied else self.own(category[:, 2])
        if self.tied:
            own = own + self.own(category[:, 2])
        found: Tensor = self.last(self.drop(torch.relu(self.hidden(self.norm(torch.cat([numeric, pair, own], dim=1))))))
        return found.squeeze(1)


def rows(count: int, classes: int = 2, weighed: bool = True) -> TrainingSet:
    """Rows with three columns of 300, 300 and 200 ids."""
    random = np.random.default_rng(3)
    numeric = random.normal(size=(count, 5)).astype(np.float32)
    category = np.stack([random.integers(0, size, count) for size in (300, 300, 200)], axis=1)
    label = np.clip(np.floor(numeric[:, 0] + classes / 2), 0, classes - 1).astype(np.float32)
    weight = random.random(count).astype(np.float32) if weighed else None
    return TrainingSet(numeric, category, label, Shape(5, (300, 300, 200)), weight)


CASES: dict[str, tuple[Torch, TrainingSet, Objective]] = {
    "AdamW, clipped, averaged, weighed": (Torch(Tables, batch=1000, clip=0.3, average=0.9), rows(6000), BINARY),
    "SGD with momentum, linear, balanced classes": (
        Torch(Tables, batch=1000, optimizer=partial(torch.optim.SGD, momentum=0.9), lr=0.1, schedule="linear", balanced=True),
        rows(6000, 3, weighed=False),
        Objective("classes", ("a", "b", "c")),
    ),
    "shards of different sizes": (Torch(Tables, batch=1024, epochs=STEPS), rows(203), BINARY),
    "bfloat16": (Torch(Tables, batch=1000, precision="bfloat16"), rows(6000), BINARY),
    "tables on the dense path": (Torch(Tables, batch=1000, options={"padding": True, "tied": True}), rows(6000), BINARY),
}


def learner(model: Torch, feed: Feed, given: TrainingSet, objective: Objective) -> Learner:
    """A new learner of a case."""
    return Learner(
        building.construct(model, given.shape, objective), model, objective, "cpu", max(STEPS, feed.steps * model.epochs)
    )


def train(case: str, group: Group) -> dict[str, Any]:
    """All steps of a case, and what came out."""
    model, given, objective = CASES[case]
    feed = Feed(given, "d", model, objective, group)
    made = learner(model, feed, given, objective)
    for step in range(STEPS):
        seen = made.step(step, feed.shards(step), feed.batch, group)
    determinism.agree(made, group)
    return {
        "state": checkpoint.digest(made.tensors()),
        "weights": checkpoint.digest(made.weights()),
        "seen": [seen.loss, seen.gradient_norm, seen.rate],
        "sparse": sorted(table.name for table in made._tables or []),
    }


def begun(folder: Path, group: Group) -> None:
    """The first two steps of a case, whose state then lies in `folder`."""
    model, given, objective = CASES["AdamW, clipped, averaged, weighed"]
    feed = Feed(given, "d", model, objective, group)
    made = learner(model, feed, given, objective)
    for step in range(2):
        made.step(step, feed.shards(step), feed.batch, group)
    if group.rank == 0:
        np.savez(folder / "state.npz", **made.tensors())


def resumed(folder: Path, group: Group) -> str:
    """The other steps, from the state in `folder`."""
    model, given, objective = CASES["AdamW, clipped, averaged, weighed"]
    feed = Feed(given, "d", model, objective, group)
    made = learner(model, feed, given, objective)
    with np.load(folder / "state.npz") as found:
        made.restore(dict(found), 2)
    for step in range(2, STEPS):
        made.step(step, feed.shards(step), feed.batch, group)
    return checkpoint.digest(made.tensors())


def parted(group: Group) -> str:
    """One weight of the last worker is changed; what `agree` says of it on each worker."""
    model, given, objective = CASES["AdamW, clipped, averaged, weighed"]
    feed = Feed(given, "d", model, objective, group)
    made = learner(model, feed, given, objective)
    made.step(0, feed.shards(0), feed.batch, group)
    if group.rank == group.world - 1:
        with torch.no_grad():
            made.module.get_parameter("hidden.weight")[0, 0] += 1e-6
    try:
        determinism.agree(made, group)
    except CtError as error:
        return error.found
    return ""


def everything(folder: Path, group: Group) -> dict[str, Any]:
    """All cases in this group. The group of three comes first and leaves a state, from which the others go on."""
    found: dict[str, Any] = {case: train(case, group) for case in CASES}
    if group.world == WORLDS[0]:
        begun(folder, group)
        return found | {"parted": parted(group)}
    return found | {"resumed": resumed(folder, group)}


def together(world: int, home: Path, act: Callable[[Group], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `act` gives in each of `world` forked processes that are one gloo group."""
    folder = home / f"of-{world}"
    folder.mkdir()
    children = []
    for rank in range(world):
        if (child := os.fork()) == 0:
            try:
                if world > 1:
                    torch.distributed.init_process_group(
                        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
                    )
                (folder / str(rank)).write_text(json.dumps(act(Group(rank, world))))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    if any([os.waitpid(child, 0)[1] for child in children]):
        raise SystemExit(f"a process of {world} failed")
    return [json.loads((folder / str(rank)).read_text()) for rank in range(world)]


def main() -> None:
    """Every case in every world; a run that goes on in other worlds; a worker that went astray."""
    determinism.pin("cpu")
    folder = Path(tempfile.mkdtemp(prefix="worlds"))
    try:
        found = {world: together(world, folder, partial(everything, folder)) for world in WORLDS}
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
