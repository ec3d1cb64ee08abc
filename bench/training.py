"""What does elastic determinism cost? The same model on the same batches, trained by `ct`'s learner and by a plain loop of torch: one worker at
1,024 and at 256 rows a logical shard, two workers against DistributedDataParallel at 8,192 rows a step. And how fast are rows fed, against
`iter_torch_batches` at 512 rows?

Both sides run alternately in the same processes, one thread each, under the environment of the numeric contract, with an allocator that
keeps what was freed. One worker is measured in CPU
seconds of its thread, two workers by the clock. The model: 8 columns of 2,000 ids in 16 numbers each beside 16 numbers, layers of 256 and
128, AdamW; with batch norm and dropout for the figures with goals, without norm for those called `plain`. `--quick` takes fewer steps.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose profile.py would stand for the one of Python

COLUMNS, IDS, WIDTH, NUMBERS, SHARDS = 8, 2_000, 16, 16, 8
# Without it the plain loop spends a fifth of its time on fresh pages for its larger tensors, which says nothing about training.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
GOALS = {
    "one_worker_1024": ["<=", 1.10],
    "one_worker_256": ["<=", 1.35],
    "two_workers_vs_ddp": ["<=", 1.10],
    "feed_vs_iter_torch_batches": [">=", 10],
}


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick = "--quick" in sys.argv
    if "--part" in sys.argv:
        part, *more = sys.argv[sys.argv.index("--part") + 1 :]
        print(json.dumps({"alone": alone, "pair": pair, "feeding": feeding}[part](quick, *(x for x in more if x[0] != "-"))))
        return
    from ct.training.determinism import ENVIRONMENT

    figures: dict[str, float] = {}
    for name in ("alone", "pair", "feeding"):
        figures |= _part([name], {**ENVIRONMENT, **ALLOCATOR}, quick)
    goals = dict(GOALS)
    from bench.parts import cycle

    measured, wanted, conditions = cycle.measure(quick)
    figures, goals = figures | measured, goals | wanted
    print(
        json.dumps(
            {
                "bench": "training",
                "figures": {name: round(value, 3) for name, value in figures.items()},
                "goals": goals,
                "conditions": {
                    "model": f"{COLUMNS} x {IDS} ids x {WIDTH}, {NUMBERS} numbers, 256-128-1",
                    "shards": SHARDS,
                    "cores": os.cpu_count(),
                    "quick": quick,
                    **conditions,
                    "versions": {"python": platform.python_version()}
                    | {name: version(name) for name in ("torch", "ray", "numpy")},
                },
            }
        )
    )


def _part(arguments: list[str], environment: Any, quick: bool) -> dict[str, float]:
    """A part in a process of its own, which must know the environment before it imports torch."""
    command = [sys.executable, __file__, *(["--quick"] if quick else []), "--part", *arguments]
    found = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    print("\n".join(found[:-1]), flush=True)
    return dict(json.loads(found[-1]))


def _network(norm: bool, dropout: float) -> Any:
    import torch
    from torch import nn

    class Network(nn.Module):
        """The bench's model."""

        def __init__(self, numeric: int, cardinalities: list[int]) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(count, WIDTH) for count in cardinalities)
            layers: list[nn.Module] = []
            before = numeric + WIDTH * len(cardinalities)
            for width in (256, 128):
                layers += [nn.Linear(before, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
                before = width
            self.layers = nn.Sequential(*layers, nn.Linear(before, 1))

        def forward(self, numeric: Any, category: Any) -> Any:
            found = [table(category[:, at]) for at, table in enumerate(self.tables)]
            return self.layers(torch.cat([numeric, *found], dim=1)).squeeze(1)

    return Network


def _rows(count: int) -> Any:
    import numpy as np

    from ct.features.encode import Shape
    from ct.training.data import TrainingSet

    random = np.random.default_rng(7)
    numeric = random.normal(size=(count, NUMBERS)).astype(np.float32)
    category = random.integers(0, IDS, (count, COLUMNS))
    label = (numeric[:, 0] + category[:, 0] / IDS + random.normal(size=count) > 0.5).astype(np.float32)
    return TrainingSet(numeric, category, label, Shape(NUMBERS, (IDS,) * COLUMNS))


def _ours(
    rows: Any, batch: int, norm: bool, dropout: float, steps: int, rank: int = 0, world: int = 1
) -> tuple[Iterator[float], Any]:
    """Our steps, one at each turn, and the module."""
    from ct.objectives import BINARY
    from ct.training import building
    from ct.training.declare import Torch
    from ct.training.determinism import Group, pin
    from ct.training.feed import Feed
    from ct.training.learner import Learner

    pin("cpu")
    model = Torch(_network(norm, dropout), batch=batch, shards=SHARDS, schedule="constant")
    group = Group(rank, world)
    module = building.construct(model, rows.shape)
    feed = Feed(rows, "bench", model, BINARY, group)
    learner = Learner(module, model, BINARY, "cpu", steps)
    return (learner.step(step, feed.shards(step), feed.batch, group).loss for step in range(steps)), module


def _plain(
    rows: Any, batch: int, norm: bool, dropout: float, steps: int, rank: int = 0, world: int = 1
) -> tuple[Iterator[float], Any]:
    """The same as a plain loop of torch; with DistributedDataParallel on two workers."""
    import torch
    from torch.nn import functional as nf

    from ct.training import building, data
    from ct.training.declare import Torch

    torch.set_num_threads(1)
    module = building.construct(Torch(_network(norm, dropout)), rows.shape).train()
    called: Any = module
    if world > 1:
        called = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-4, foreach=True)
    parts = [torch.from_numpy(values) for values in (rows.numeric, rows.category, rows.label)]
    each = len(rows) // batch

    def loop() -> Iterator[float]:
        order: Any = None
        for step in range(steps):
            epoch, at = divmod(step, each)
            if at == 0:
                order = torch.from_numpy(data.order(len(rows), "bench", 0, epoch))
            index = order[at * batch : (at + 1) * batch].chunk(world)[rank]
            numeric, category, label = (part.index_select(0, index) for part in parts)
            optimizer.zero_grad(set_to_none=True)
            loss = nf.binary_cross_entropy_with_logits(called(numeric, category), label)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield loss.item()

    return loop(), module


def _check(rows: Any) -> None:
    """Without norm and dropout both sides do the same arithmetic, so their weights must be the same but for rounding."""
    import torch

    found = []
    for side in (_ours, _plain):
        steps, module = side(rows, 2_048, False, 0.0, 6)
        losses = list(steps)
        found.append((losses, [parameter.detach() for parameter in module.parameters()]))
    for mine, theirs in zip(found[0][0], found[1][0], strict=True):
        assert abs(mine - theirs) < 1e-5, f"losses differ: {found[0][0]} and {found[1][0]}"
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        # AdamW's first steps move by about lr whatever the gradient's size: where that is nothing but rounding, weights differ by a few lr
        assert (torch.isclose(mine, theirs, atol=1e-4).float().mean() > 0.99).item(), "weights differ"


def _alternate(
    sides: list[Iterator[float]], rounds: int, steps: int, clock: Callable[[], float], ready: Callable[[], Any]
) -> list[float]:
    """Median seconds of a step of each side, taken in turns; the first round warms up."""
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        for times, side in zip(taken, sides, strict=True):
            ready()
            begun = clock()
            for _ in range(steps):
                next(side)
            ready()
            times.append((clock() - begun) / steps)
            if turn == 0:
                times.clear()
    return [statistics.median(times) for times in taken]


def alone(quick: bool) -> dict[str, float]:
    """One worker against the plain loop."""
    rows = _rows(65_536)
    _check(rows)
    print("one worker: both sides reach the same weights without norm and dropout", flush=True)
    rounds = 5 if quick else 15
    figures = {}
    for each, steps in ((1_024, 4), (256, 16)):
        for norm in (True, False):
            sides = [side(rows, each * SHARDS, norm, 0.1 if norm else 0.0, (rounds + 1) * steps)[0] for side in (_ours, _plain)]
            mine, theirs = _alternate(sides, rounds, steps, time.process_time, lambda: None)
            figures[f"one_worker_{each}" + ("" if norm else "_plain")] = mine / theirs
            said = "batch norm and dropout" if norm else "no norm, no dropout"
            print(
                f"one worker, {each:,} rows a shard, {said}: {mine * 1e3:.1f} ms a step, plain loop {theirs * 1e3:.1f} ms",
                flush=True,
            )
    return figures


def pair(quick: bool, *where: str) -> dict[str, float]:
    """Two workers against DistributedDataParallel; without `where` the one who starts both."""
    if not where:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = str(held.getsockname()[1])
        base = [sys.executable, __file__, *(["--quick"] if quick else []), "--part", "pair"]
        others = subprocess.Popen([*base, "1", port], stdout=subprocess.DEVNULL)
        found = subprocess.run([*base, "0", port], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        others.wait()
        print("\n".join(found[:-1]), flush=True)
        return dict(json.loads(found[-1]))
    import torch.distributed as dist

    rank, port = int(where[0]), where[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows, rounds, steps = _rows(65_536), 5 if quick else 15, 4
    figures = {}
    for norm in (True, False):
        made = [side(rows, 8_192, norm, 0.1 if norm else 0.0, (rounds + 1) * steps, rank, 2)[0] for side in (_ours, _plain)]
        mine, theirs = _alternate(made, rounds, steps, time.perf_counter, dist.barrier)
        figures["two_workers_vs_ddp" + ("" if norm else "_plain")] = mine / theirs
        print(f"two workers, 8,192 rows a step: {mine * 1e3:.1f} ms, DistributedDataParallel {theirs * 1e3:.1f} ms", flush=True)
    dist.destroy_process_group()
    return figures


def feeding(quick: bool) -> dict[str, float]:
    """Rows a second at 512 rows a batch: our feed, in shuffled order, and Ray Data's batches, in order, both from memory."""
    import pyarrow as pa
    import ray

    from ct.objectives import BINARY
    from ct.training.declare import Torch
    from ct.training.determinism import Group
    from ct.training.feed import Feed

    rows = _rows(200_000 if quick else 1_000_000)
    columns = {f"n{at}": rows.numeric[:, at] for at in range(NUMBERS)} | {
        f"c{at}": rows.category[:, at] for at in range(COLUMNS)
    }
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=800_000_000, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = pa.table({name: pa.array(values) for name, values in {**columns, "label": rows.label}.items()})
    whole = ray.data.from_arrow([table.slice(at, 50_000) for at in range(0, len(rows), 50_000)]).materialize()
    feed = Feed(rows, "bench", Torch(_network(True, 0.1), batch=512, shards=1), BINARY, Group())
    ours, theirs = [], []
    for _ in range(2 if quick else 3):
        begun, labels = time.perf_counter(), 0.0
        for step in range(feed.steps):
            (shard,) = feed.shards(step)
            labels += float(shard.label.sum())
        ours.append(feed.steps * 512 / (time.perf_counter() - begun))
        begun, seen, count = time.perf_counter(), 0.0, 0
        for batch in whole.iter_torch_batches(batch_size=512):
            seen += float(batch["label"].sum())
            count += len(batch["label"])
        theirs.append(count / (time.perf_counter() - begun))
        if count != len(rows) or not 0 <= seen - labels <= 512:
            raise SystemExit("the two sides fed other rows")
    ray.shutdown()
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"feeding at 512 rows: {mine / 1e6:.2f} M rows/s, iter_torch_batches {other / 1e6:.3f} M rows/s", flush=True)
    return {"feed_vs_iter_torch_batches": mine / other}


if __name__ == "__main__":
    main()
