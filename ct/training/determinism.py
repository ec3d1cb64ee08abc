"""The numeric contract, and the fixed tree by which gradients are added. Same contract and same rows: same bytes, on any number of workers.

A step's rows form V logical shards. Each shard's gradient is computed alone and the V gradients are added along one fixed binary
tree, whoever computed them. A worker adds the complete subtrees it owns; the subtrees are exchanged and the rest of the same tree
is added everywhere. No floating-point all-reduce takes part, because its order depends on the number of workers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ct.errors import TrainingFailed
from ct.ids import canonical, describe, sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ct.training.declare import Torch


class Stateful(Protocol):
    """Something whose whole state is arrays by name, such as a Learner."""

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """The state."""


@dataclass(frozen=True)
class Group:
    """This worker among `world` workers that run the same job."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


Block = tuple[int, int]
"""A complete subtree: (first shard, number of shards), the number a power of two that divides the first."""

ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AVX2,STRICT",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
}
"""Set before torch is imported, in every process that trains; the last because a module may make its layers from a set of names."""


def contract(model: Torch, device: str) -> dict[str, Any]:
    """What the bytes depend on besides rows, seed and code. `device` is cpu or a GPU's name. Called in a process that trains."""
    import numpy as np
    import torch

    cudnn: Any = torch.backends.cudnn
    gpu = {"cuda": torch.version.cuda, "cudnn": cudnn.version(), "algorithms": "deterministic"}
    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": f"{_vendor()} {torch.backends.cpu.get_cpu_capability()}".strip(),
        "device": device,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        **{name: os.environ.get(name, "") for name in ("MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")},
        **({} if device == "cpu" else gpu | {"CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "")}),
        "mode": "eager",
        "optimizer": "torch.optim.AdamW" if model.optimizer is None else _without_source(describe(model.optimizer)),
        "path": "foreach",
        "schedule": _without_source(describe(model.schedule)),
        "clip": "none" if not model.clip else f"global norm {float(model.clip):.17g} of the reduced gradient",
        "average": "none" if not model.average else f"{float(model.average):.17g}, at step t at most (1 + t) / (10 + t)",
        "balanced": model.balanced,
        "divisor": "rows of the step, or the sum of their weights, by the tree",
        "batch": model.batch,
        "shards": model.shards,
        "dtype": "float32" if model.precision == "float32" else "float32, forward under bfloat16 autocast",
        "tree": "binary, in order of shards",
        "embeddings": f"tables of more than {model.batch // model.shards} rows by index_add in order of rows, others by the tree",
        "batch statistics": "of each shard, running values by the tree",
        "random": "(seed, step, shard) by SHA-256",
    }
    return found | {"id": sha256(canonical(found))[:16]}


def _without_source(told: Any) -> Any:
    """A description without the source hashes of torch's own classes: the version of torch stands for them."""
    if isinstance(told, Mapping):
        known = str(told.get("name", "")).startswith("torch.")
        return {key: _without_source(value) for key, value in told.items() if not (known and key == "source")}
    return [_without_source(value) for value in told] if isinstance(told, list) else told


def _vendor() -> str:
    """The processor's maker: MKL takes other code paths on other makers' processors, whatever it was told."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def owned(shards: int, worker: int, workers: int) -> range:
    """The logical shards of a worker: consecutive, together all of them."""
    return range(shards * worker // workers, shards * (worker + 1) // workers)


def blocks(shards: range) -> list[Block]:
    """The largest complete subtrees that make up consecutive shards, left to right."""
    found, at = [], shards.start
    while at < shards.stop:
        size = at & -at if at else 1 << (shards.stop - 1).bit_length()
        while at + size > shards.stop:
            size //= 2
        found.append((at, size))
        at += size
    return found


class Tree:
    """Adds values of shards as soon as both halves of a subtree are there."""

    def __init__(self) -> None:
        self.nodes: dict[Block, Tensor] = {}

    def add(self, block: Block, value: Tensor) -> None:
        """Put a subtree's sum in its place and add upwards where the other half waits. `value` may be changed."""
        start, size = block
        while (other := (start ^ size, size)) in self.nodes:
            waiting = self.nodes.pop(other)
            # left + right always, whichever came last
            value = waiting.add_(value) if other[0] < start else value.add_(waiting)
            start, size = min(start, other[0]), size * 2
        self.nodes[(start, size)] = value

    def root(self, shards: int) -> Tensor:
        """The sum over all shards."""
        return self.nodes[(0, shards)]


def exchange(tree: Tree, shards: int, worker: int, workers: int) -> None:
    """Give every worker the sum of the whole tree. A no-op for one worker.

    Where each of 4, 8, … workers owns one subtree: recursive halving and doubling. Each element is added along the same tree, and a
    worker sends about two vectors, as in a ring all-reduce. Else, and for two, the subtrees go to everybody and each finishes the tree.
    """
    if workers == 1:
        return
    plans = [blocks(owned(shards, rank, workers)) for rank in range(workers)]
    if workers > 2 and workers & (workers - 1) == 0 and all(len(plan) == 1 for plan in plans):
        tree.nodes = {(0, shards): _halved(tree.nodes[plans[worker][0]], worker, workers)}
        return
    mine = [tree.nodes[block] for block in plans[worker]]
    length = mine[0].numel()
    received = gathered(mine[0] if len(mine) == 1 else _joined(mine), [len(plan) * length for plan in plans], worker)
    tree.nodes = {}
    for plan, values in zip(plans, received, strict=True):
        for at, block in enumerate(plan):
            tree.add(block, values[at * length : (at + 1) * length])


def _joined(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)


def gathered(mine: Tensor, lengths: list[int], worker: int) -> list[Tensor]:
    """Every worker's vector, of `lengths` numbers, in order of workers. Two swap theirs; of more, the shorter ones travel padded."""
    import torch
    import torch.distributed as dist

    if len(lengths) == 2:
        other = _swapped(mine, mine.new_empty(lengths[1 - worker]), 1 - worker)
        return [other, mine] if worker else [mine, other]
    longest = max(lengths)
    if mine.numel() < longest:
        mine = torch.cat([mine, mine.new_zeros(longest - mine.numel())])
    received = mine.new_empty(len(lengths) * longest)
    dist.all_gather_single(received, mine)
    return [received[rank * longest : rank * longest + length] for rank, length in enumerate(lengths)]


def _halved(vector: Tensor, worker: int, workers: int) -> Tensor:
    """The sum of all workers' vectors along the tree: at distance 1, 2, 4 … two workers swap halves and each adds one; then they share.

    Workers at distance d own neighbouring subtrees of the same size, so every element is added exactly as `Tree` would.
    """
    import torch

    size = vector.numel()
    if size % workers:
        vector = torch.cat([vector, vector.new_zeros(workers - size % workers)])
    at, length, distance = 0, vector.numel(), 1
    while distance < workers:
        length //= 2
        lower = not worker & distance
        kept, given = (at, at + length) if lower else (at + length, at)
        received = _swapped(vector[given : given + length], vector.new_empty(length), worker ^ distance)
        mine = vector[kept : kept + length]
        torch.add(*((mine, received) if lower else (received, mine)), out=mine)
        at, distance = kept, distance * 2
    while distance > 1:
        distance //= 2
        other = at + length if not worker & distance else at - length
        _swapped(vector[at : at + length], vector[other : other + length], worker ^ distance)
        at, length = min(at, other), length * 2
    return vector[:size]


def _swapped(given: Tensor, taken: Tensor, other: int) -> Tensor:
    """`taken`, filled with what worker `other` gives, who gets `given`."""
    import torch.distributed as dist

    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, given, other), dist.P2POp(dist.irecv, taken, other)]):
        work.wait()
    return taken


def agree(learner: Stateful, group: Group) -> None:
    """Compare every tensor of the learner's state on all workers.

    Raises TrainingFailed on all of them with the first tensor that differs, by name, and the ranks on which it does.
    """
    if group.world == 1:
        return
    import torch

    tensors = learner.tensors()
    names = sorted(tensors)
    mine = [_short(name, tensors[name]) for name in names]
    counts = gathered(torch.tensor([len(mine)], device=group.device), [1] * group.world, group.rank)
    if len({int(count) for count in counts}) > 1:
        raise TrainingFailed(
            f"the workers keep {sorted({int(count) for count in counts})} tensors",
            "the same ones",
            "make the model's tensors before its training",
        )
    received = gathered(torch.tensor(mine, device=group.device), [len(mine)] * group.world, group.rank)
    everybody = torch.stack(received).cpu()
    for at, name in enumerate(names):
        found = everybody[:, at].tolist()
        if len(set(found)) > 1:
            usual = max(found, key=lambda value: (found.count(value), value == found[0]))
            odd = [rank for rank, value in enumerate(found) if value != usual]
            raise TrainingFailed(
                f"the workers' states differ: {name} on rank {', '.join(map(str, odd))}",
                "the same bytes on every worker",
                "train on one kind of processor, for example by labels, and look for a fault of that machine",
            )


def _short(name: str, value: NDArray[Any]) -> int:
    """63 bits of a hash over a tensor's name, type, shape and bytes."""
    import numpy as np

    said = canonical([name, str(value.dtype), list(value.shape), sha256(np.asarray(value, order="C").tobytes())])
    return int(sha256(said)[:16], 16) >> 1


def pin(device: str) -> None:
    """What the contract asks of torch in a process that trains: one thread, and on a GPU deterministic kernels without TF32 or tuning."""
    import torch

    torch.set_num_threads(1)
    if device != "cpu":
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False


def shard_seed(seed: int, step: int, shard: int) -> int:
    """The seed of a shard's random numbers in one step: 63 bits of a hash, so that neighbours share nothing."""
    return int.from_bytes(hashlib.sha256(struct.pack("<QQQ", seed, step, shard)).digest()[:8], "little") >> 1
