"""The ordered sparse path for nn.Embedding: not a gradient as large as the table for each shard, but the gradients of the rows that were
looked up, gathered from all workers and added once a step in the order of the step's rows. So the sum is the same for any number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from ct.errors import TrainingFailed
from ct.training import determinism
from ct.training.determinism import Group


class Table:
    """One nn.Embedding on the sparse path. `calls` are the ids and outputs of a shard's look-ups, `each` the ids looked up for a row."""

    def __init__(self, name: str, embedding: nn.Embedding) -> None:
        self.name, self.embedding, self.active, self.each = name, embedding, False, 0
        self.values = embedding.weight.detach()  # the same memory
        self.calls: list[tuple[Tensor, Tensor]] = []
        embedding.forward = partial(_look_up, self)  # type: ignore[method-assign]

    @property
    def width(self) -> int:
        """Numbers of one row of the table."""
        return self.embedding.embedding_dim

    def leave(self) -> None:
        """Take the dense path again: the embedding is what it was."""
        del self.embedding.__dict__["forward"]


def _look_up(table: Table, ids: Tensor) -> Tensor:
    """The embedding's forward. While a shard is computed its output is a leaf, whose gradient is all that is asked for."""
    if not (table.active and torch.is_grad_enabled()):
        return nf.embedding(ids, table.embedding.weight)
    out = torch.embedding(table.values, ids).requires_grad_()
    table.calls.append((ids, out))
    return out


def candidates(module: nn.Module, rows: int) -> list[Table]:
    """The embeddings for which the sparse path exists and pays: plain ones with more rows than a shard of `rows` rows, each weight used once.

    padding_idx, max_norm, scale_grad_by_freq, sparse and hooks have meanings of their own, which the dense path keeps.
    """
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return [
        Table(name, part)
        for name, part in module.named_modules()
        if type(part) is nn.Embedding
        and part.num_embeddings > rows
        and part.weight.requires_grad
        and uses[id(part.weight)] == 1
        and part.padding_idx is None
        and part.max_norm is None
        and not (part.scale_grad_by_freq or part.sparse)
        and not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)
        and "forward" not in part.__dict__
    ]


def kept(tables: list[Table], module: nn.Module, numeric: Tensor, category: Tensor) -> list[Table]:
    """Those tables that a trial with n made-up rows shows to be fit: looked up equally often for each row, their weight used nowhere else,
    their output not changed in place. The others take the dense path again."""
    fit = _tried(tables, module, numeric, category)
    for table in tables:
        if table not in fit:
            table.leave()
    return fit


def _tried(tables: list[Table], module: nn.Module, numeric: Tensor, category: Tensor) -> list[Table]:
    weights = [table.embedding.weight for table in tables]
    counts = []
    for rows in (len(numeric), len(numeric) - 1):
        begin(tables)
        try:
            found = module(numeric[:rows], category[:rows]).float().sum()
            used = torch.autograd.grad(found, weights, allow_unused=True) if found.requires_grad else [None] * len(tables)
        except RuntimeError:
            return []
        finally:
            ended = end(tables)
        counts.append(
            [
                (sum(ids.numel() for ids, _ in calls) / rows, gradient is None)
                for calls, gradient in zip(ended, used, strict=True)
            ]
        )
    fit = []
    for table, (each, alone), (again, still) in zip(tables, *counts, strict=True):
        if alone and still and each == again and each == int(each) > 0:
            table.each = int(each)
            fit.append(table)
    return fit


def begin(tables: list[Table]) -> None:
    """From now on look-ups are noted."""
    for table in tables:
        table.active, table.calls = True, []


def end(tables: list[Table]) -> list[list[tuple[Tensor, Tensor]]]:
    """The look-ups noted of each table."""
    for table in tables:
        table.active = False
    return [table.calls for table in tables]


@dataclass
class Noted:
    """What one shard looked up, table after table and call after call: ids, and the gradients of what came out. `calls` counts each table's."""

    calls: list[int]
    ids: list[Tensor]
    gradients: list[Tensor]


def noted(
    tables: list[Table], calls: list[list[tuple[Tensor, Tensor]]], gradients: Sequence[Tensor | None], rows: int
) -> Noted:
    """A shard's look-ups and their gradients, these in the order of all calls. Raises TrainingFailed when it looked up more or fewer ids
    than its `rows` rows should."""
    for table, made in zip(tables, calls, strict=True):
        count = sum(ids.numel() for ids, _ in made)
        if count != table.each * rows:
            raise TrainingFailed(
                f"the model looked up {count} ids of {table.name} for {rows} rows",
                f"{table.each * rows}, as many a row as for other rows",
                "call torch.nn.functional.embedding(ids, table.weight) where the number of ids depends on the rows",
            )
    flat = [pair for made in calls for pair in made]
    found = [
        torch.zeros_like(out) if gradient is None else gradient for (_, out), gradient in zip(flat, gradients, strict=True)
    ]
    return Noted([len(made) for made in calls], [ids for ids, _ in flat], found)


def add(tables: list[Table], shards: list[Noted], rows: int, count: int, group: Group) -> list[Tensor]:
    """Each table's gradient, as large as the table: the rows' gradients of all `count` shards, added in the order of the step's `rows` rows.

    `shards` are this worker's, in order. index_add_ adds one row after the other on a CPU; on a GPU it does so in deterministic mode.
    """
    everybody = _gathered(tables, shards, rows, count, group)
    found = []
    for table, ids, gradients in zip(tables, *everybody, strict=True):
        found.append(torch.zeros_like(table.values).index_add_(0, ids, gradients))
    return found


def _joined(tables: list[Table], shards: list[Noted]) -> tuple[list[Tensor], list[Tensor]]:
    """For each table all ids [n] and gradients [n, width] of these shards, in order."""
    ids: list[list[Tensor]] = [[] for _ in tables]
    gradients: list[list[Tensor]] = [[] for _ in tables]
    for shard in shards:
        at = 0
        for place, calls in enumerate(shard.calls):
            ids[place] += shard.ids[at : at + calls]
            gradients[place] += shard.gradients[at : at + calls]
            at += calls
    return (
        [
            torch.cat([part.reshape(-1) for part in parts]) if parts else table.values.new_zeros(0, dtype=torch.int64)
            for table, parts in zip(tables, ids, strict=True)
        ],
        [
            torch.cat([part.reshape(-1, table.width) for part in parts]) if parts else table.values[:0]
            for table, parts in zip(tables, gradients, strict=True)
        ],
    )


def _gathered(
    tables: list[Table], shards: list[Noted], rows: int, count: int, group: Group
) -> tuple[list[Tensor], list[Tensor]]:
    """For each table the ids and gradients of all workers, in order of rows."""
    ids, gradients = _joined(tables, shards)
    if group.world == 1:
        return ids, gradients
    owned = [determinism.owned(count, rank, group.world) for rank in range(group.world)]
    held = [rows * mine.stop // count - rows * mine.start // count for mine in owned]
    whole = [part.to(torch.int32) for part in ids] + [part.reshape(-1).view(torch.int32) for part in gradients]
    widths = [table.each for table in tables] + [table.each * table.width for table in tables]
    received = determinism.gathered(torch.cat(whole), [mine * sum(widths) for mine in held], group.world)
    parts: list[list[Tensor]] = [[] for _ in widths]
    for mine, values in zip(held, received, strict=True):
        at = 0
        for part, width in zip(parts, widths, strict=True):
            part.append(values[at : at + mine * width])
            at += mine * width
    joined = [torch.cat(part) for part in parts]
    half = len(tables)
    wide = [value.view(torch.float32).view(-1, table.width) for value, table in zip(joined[half:], tables, strict=True)]
    return [value.to(torch.int64) for value in joined[:half]], wide
