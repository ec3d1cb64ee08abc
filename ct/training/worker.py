"""What every training worker runs: the same loop for one process, many workers, CPU or GPU. Called by Ray Train."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ct.errors import TrainingFailed
from ct.training import checkpoint
from ct.training.checkpoint import Checkpoint
from ct.training.data import TrainingSet, order, steps
from ct.training.declare import Torch
from ct.training.determinism import Tree, contract, exchange, owned, shard_seed

WARM_UP = 0.05


def loop(config: dict[str, Any]) -> None:
    """Train to the end, or go on from the newest checkpoint of the same run. Rank 0 leaves the result in `<storage>/final`."""
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model: Torch = config["model"]
    storage = Path(config["storage"])
    state = _State(model, TrainingSet.open(Path(config["folder"])), rank, world)
    if config["checkpoints"] and (found := checkpoint.newest(storage)):
        state.restore(found)
    while state.epoch < model.epochs:
        report = state.run_epoch()
        if rank == 0:
            with (storage / "progress.jsonl").open("a") as file:
                file.write(json.dumps(report) + "\n")
            if config["checkpoints"]:
                checkpoint.save(storage, state.snapshot())
        ray.train.report(report)
    if rank == 0:
        final = state.snapshot()
        weights = {name.removeprefix("weight."): value for name, value in final.tensors.items() if name.startswith("weight.")}
        checkpoint.save(storage / "final", Checkpoint(final.step, weights, final.history))
        (storage / "contract.json").write_text(json.dumps(contract(model)))


class _State:
    """Module, optimizer and position of one worker."""

    def __init__(self, model: Torch, rows: TrainingSet, rank: int, world: int) -> None:
        import torch

        self.model, self.rows, self.rank, self.world = model, rows, rank, world
        self.device = ray_device()
        torch.manual_seed(model.seed)
        self.module = build(model, rows.numeric.shape[1], rows.cardinalities).to(self.device)
        self.parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=model.lr, weight_decay=model.weight_decay, foreach=True)
        self.tensors = [
            torch.from_numpy(np.array(array)).to(self.device) for array in (rows.numeric, rows.category, rows.label)
        ]
        self.per_epoch = steps(len(rows), model.batch)
        if self.per_epoch == 0:
            raise TrainingFailed(
                f"{len(rows)} training rows",
                f"at least one batch of {model.batch}",
                "let more data land or make the batch smaller",
            )
        self.step = 0
        self.history: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        return self.step // self.per_epoch

    def run_epoch(self) -> dict[str, Any]:
        """One pass over the rows; returns {epoch, loss, steps, rows}. Raises TrainingFailed when the loss is no longer a number."""
        import torch

        epoch = self.epoch
        places = torch.from_numpy(order(len(self.rows), self.model.seed, epoch)).to(self.device)
        total = 0.0
        for at in range(self.per_epoch):
            loss = self._step(places[at * self.model.batch : (at + 1) * self.model.batch])
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss is {loss} at step {self.step}", "a finite loss", "lower the learning rate or look at the data"
                )
            total += loss
        report = {"epoch": epoch, "loss": total / self.per_epoch, "steps": self.step, "rows": len(self.rows)}
        self.history.append(report)
        return report

    def _step(self, places: Any) -> float:
        """One optimizer step over `batch` rows; returns the mean loss."""
        import torch

        numeric, category, label = (tensor[places] for tensor in self.tensors)
        size = self.model.batch // self.model.shards
        tree = Tree()
        for shard in owned(self.model.shards, self.rank, self.world):
            part = slice(shard * size, (shard + 1) * size)
            torch.default_generator.manual_seed(shard_seed(self.model.seed, self.step, shard))
            logits = self.module(numeric[part], category[part])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label[part])
            gradients = torch.autograd.grad(loss, self.parameters)
            tree.add((shard, 1), torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.detach().reshape(1)]))
        exchange(tree, self.model.shards, self.rank, self.world)
        mean = tree.root(self.model.shards).mul_(1.0 / self.model.shards)
        at = 0
        for parameter in self.parameters:
            parameter.grad = mean[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        for group in self.optimizer.param_groups:
            group["lr"] = self.model.lr * schedule(self.step, self.model.epochs * self.per_epoch)
        self.optimizer.step()
        self.step += 1
        return float(mean[-1])

    def snapshot(self) -> Checkpoint:
        """Weights and both moments as numpy."""
        tensors = {f"weight.{name}": value.detach().cpu().numpy() for name, value in self.module.state_dict().items()}
        for at, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{at}.{name}"] = value.detach().cpu().numpy()
        return Checkpoint(self.step, tensors, tuple(self.history))

    def restore(self, found: Checkpoint) -> None:
        """Go back to a checkpoint."""
        import torch

        weights = {
            name.removeprefix("weight."): torch.from_numpy(np.array(v))
            for name, v in found.tensors.items()
            if name.startswith("weight.")
        }
        self.module.load_state_dict(weights)
        for at, parameter in enumerate(self.parameters):
            names = [name for name in found.tensors if name.startswith(f"optimizer.{at}.")]
            moments = {name.rpartition(".")[2]: torch.from_numpy(np.array(found.tensors[name])) for name in names}
            self.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(self.device) for key, value in moments.items()
            }
        self.step, self.history = found.step, list(found.history)


def schedule(step: int, total: int) -> float:
    """The learning rate's factor: linear warm-up over 5 % of all steps, then a half cosine down to 0."""
    warm = max(1, int(total * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def ray_device() -> Any:
    """The GPU that Ray gave this worker, else the CPU."""
    import torch

    return torch.device("cuda:0") if torch.cuda.is_available() else torch.device("cpu")


def build(model: Torch, numeric: int, cardinalities: tuple[int, ...]) -> Any:
    """The user's module. Raises TrainingFailed when it cannot be built, or holds what the fixed tree cannot reproduce."""
    import torch

    try:
        module = model.model(numeric=numeric, cardinalities=list(cardinalities), **model.options)
    except TypeError as error:
        raise TrainingFailed(
            f"{model.model.__qualname__} cannot be built: {error}",
            "parameters numeric, cardinalities and the options",
            "mend its __init__",
        ) from None
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise TrainingFailed(
                f"{model.model.__qualname__} holds {type(part).__name__}, whose statistics depend on the number of workers",
                "layers without statistics of the batch",
                "use LayerNorm or RMSNorm",
            )
    return module
