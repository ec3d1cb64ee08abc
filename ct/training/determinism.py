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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ct.ids import canonical, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from ct.training.declare import Torch


@dataclass(frozen=True)
class Group:
    """This worker among `world` workers that run the same job."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    report: Callable[[dict[str, Any]], None] = lambda seen: None


Block = tuple[int, int]
"""A complete subtree: (first shard, number of shards), the number a power of two that divides the first."""

ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AVX2,STRICT",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Set before torch is imported, in every process that trains."""


def contract(model: Torch, device: str) -> dict[str, Any]:
    """What the bytes depend on besides rows, seed and code. `device` is cpu or a GPU's name. Called in a process that trains."""
    import numpy as np
    import torch

    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": f"{_vendor()} {torch.backends.cpu.get_cpu_capability()}".strip(),
        "device": device,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        **{name: os.environ.get(name, "") for name in ("MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")},
        "mode": "eager",
        "optimizer": "AdamW foreach, warm-up and cosine",
        "batch": model.batch,
        "shards": model.shards,
        "dtype": "float32",
        "tree": "binary, in order of shards",
        "random": "(seed, step, shard) by SHA-256",
    }
    return found | {"id": sha256(canonical(found))[:16]}


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
    """Send the own complete subtrees to all workers, take theirs, and finish the tree. A no-op for one worker."""
    if workers == 1:
        return
    import torch
    import torch.distributed as dist

    plans = [blocks(owned(shards, rank, workers)) for rank in range(workers)]
    longest = max(len(plan) for plan in plans)
    first = next(iter(tree.nodes.values()))
    mine = torch.zeros(longest, first.numel(), dtype=first.dtype, device=first.device)
    for at, block in enumerate(plans[worker]):
        mine[at].copy_(tree.nodes[block])
    gathered = [torch.empty_like(mine) for _ in range(workers)]
    dist.all_gather(gathered, mine)
    tree.nodes = {}
    for plan, values in zip(plans, gathered, strict=True):
        for at, block in enumerate(plan):
            tree.add(block, values[at])


def shard_seed(seed: int, step: int, shard: int) -> int:
    """The seed of a shard's random numbers in one step: 63 bits of a hash, so that neighbours share nothing."""
    return int.from_bytes(hashlib.sha256(struct.pack("<QQQ", seed, step, shard)).digest()[:8], "little") >> 1
