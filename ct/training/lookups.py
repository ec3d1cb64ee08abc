"""The ordered sparse path for nn.Embedding: not a gradient as large as the table for each shard, but the gradients of the rows that were
looked up, gathered from all workers and added once a step in the order of the step's rows. So the sum is the same for any number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
    """What one shard looked up of each table: ids [n], and the gradients [n, width] of what came out."""

    ids: list[Tensor]
    gradients: list[Tensor]


def noted(
    tables: list[Table], calls: list[list[tuple[Tensor, Tensor]]], gradients: Sequence[Tensor | None], rows: int
) -> Noted:
    """A shard's look-ups and their gradients, these in the order of all calls. Raises TrainingFailed when it looked up more or fewer ids
    than its `rows` rows should."""
    found, at = Noted([], []), 0
    for table, made in zip(tables, calls, strict=True):
        count = sum(ids.numel() for ids, _ in made)
        if count != table.each * rows:
            raise TrainingFailed(
                f"the model looked up {count} ids of {table.name} for {rows} rows",
                f"{table.each * rows}, as many a row as for other rows",
                "call torch.nn.functional.embedding(ids, table.weight) where the number of ids depends on the rows",
            )
        pairs = zip(made, gradients[at : at + len(made)], strict=True)
        wide = [torch.zeros_like(out) if gradient is None else gradient for (_, out), gradient in pairs]
        at += len(made)
        ids = [ids.reshape(-1) for ids, _ in made]
        flat = [gradient.reshape(-1, table.width) for gradient in wide]
        found.ids.append(ids[0] if len(ids) == 1 else torch.cat(ids))
        found.gradients.append(flat[0] if len(flat) == 1 else torch.cat(flat))
    return found


def add(tables: list[Table], shards: list[Noted], rows: int, count: int, group: Group) -> list[Tensor]:
    """Each table's gradient, as large as the table: the rows' gradients of all `count` shards, added in the order of the step's `rows` rows.

    `shards` are this worker's, in order. index_add_ adds one row after the other on a CPU; on a GPU it does so in deterministic mode.
    """
    found = [torch.zeros_like(table.values) for table in tables]
    for shard in shards if group.world == 1 else _gathered(tables, shards, rows, count, group):
        for total, ids, gradients in zip(found, shard.ids, shard.gradients, strict=True):
            total.index_add_(0, ids.to(torch.int64), gradients.contiguous())
    return found


def _gathered(tables: list[Table], shards: list[Noted], rows: int, count: int, group: Group) -> Iterator[Noted]:
    """All workers' shards in order. A worker sends the ids of all its shards as int32, then their gradients, in one message."""
    sizes = [rows * (place + 1) // count - rows * place // count for place in range(count)]
    owned = [determinism.owned(count, rank, group.world) for rank in range(group.world)]
    ids = torch.cat([part for shard in shards for part in shard.ids])
    numbers = [part for shard in shards for part in shard.gradients]
    message = ids.new_empty(len(ids) + sum(part.numel() for part in numbers), dtype=torch.int32)
    message[: len(ids)] = ids
    at, wide = len(ids), message.view(torch.float32)
    for part in numbers:
        wide[at : at + part.numel()].view_as(part).copy_(part)
        at += part.numel()
    each = sum(table.each for table in tables)
    wholes = [each * sum(sizes[place] for place in mine) for mine in owned]
    width = sum(table.each * table.width for table in tables)
    lengths = [whole + width * whole // each for whole in wholes]
    received = determinism.gathered(message, lengths, group.rank)
    for mine, whole, values in zip(owned, wholes, received, strict=True):
        at, after, wide = 0, whole, values.view(torch.float32)
        looked_up = values[:whole].to(torch.int64)
        for place in mine:
            found = Noted([], [])
            for table in tables:
                n = sizes[place] * table.each
                found.ids.append(looked_up[at : at + n])
                found.gradients.append(wide[after : after + n * table.width].view(n, table.width))
                at, after = at + n, after + n * table.width
            yield found
