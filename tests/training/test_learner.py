"""The learner against a plain loop of torch, its state, its rates, and the fit of embeddings for the sparse path."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as nf

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.objectives import BINARY
from ct.training import building, checkpoint, determinism
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.determinism import Group
from ct.training.feed import Feed
from ct.training.learner import Learner, Level, Seen, fault, rate

STEPS = 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    determinism.pin("cpu")


class Net(nn.Module):
    """A table beside numbers; `ways` says what else is done with the table."""

    def __init__(self, numeric: int, cardinalities: list[int], way: str = "", **options: Any) -> None:
        super().__init__()
        self.way = way
        self.table = nn.Embedding(cardinalities[0], 4, **options)
        self.other = nn.Embedding(cardinalities[0], 4)
        if way == "shared weight":
            self.other.weight = self.table.weight
        self.hidden = nn.Linear(numeric + 4, 16)
        self.last = nn.Linear(16, 1)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        found = self.table(category[:, 0])
        if self.way == "changed in place":
            found += 1
        if self.way in ("shared weight", "twice"):
            found = found + (self.other if self.way == "shared weight" else self.table)(category[:, 1])
        if self.way == "weight used":
            found = found + nf.embedding(category[:, 1], self.table.weight)
        if self.way == "some ids only":
            found = found + self.table(category[:1, 0]).sum()
        made: Tensor = self.last(torch.relu(self.hidden(torch.cat([numeric, found], dim=1)))).squeeze(1)
        return made


def rows(weighed: bool = False) -> TrainingSet:
    random = np.random.default_rng(2)
    numeric = random.normal(size=(2000, 3)).astype(np.float32)
    category = random.integers(0, 60, (2000, 2))
    label = (numeric[:, 0] + category[:, 0] / 30 > 1).astype(np.float32)
    weight = (random.random(2000) * 3).astype(np.float32) if weighed else None
    return TrainingSet(numeric, category, label, Shape(3, (60, 60)), weight)


def ours(model: Torch, given_rows: TrainingSet, steps: int = STEPS) -> tuple[Learner, list[Seen], Feed]:
    feed = Feed(given_rows, "d", model, BINARY, Group())
    made = Learner(building.construct(model, given_rows.shape), model, BINARY, "cpu", 20)
    return made, [made.step(step, feed.shards(step), feed.batch, Group()) for step in range(steps)], feed


def plain(
    model: Torch, given_rows: TrainingSet, make: Callable[..., torch.optim.Optimizer], steps: int = STEPS
) -> tuple[nn.Module, list[Tensor], list[float]]:
    """A loop as anybody would write it, over whole batches: its module, its weights after each step, its losses."""
    module = building.construct(model, given_rows.shape).train()
    optimizer = make(module.parameters())
    whole = Feed(given_rows, "d", Torch(Net, batch=model.batch, shards=1), BINARY, Group())
    weights, losses = [], []
    for step in range(steps):
        (shard,) = whole.shards(step)
        optimizer.zero_grad()
        found = nf.binary_cross_entropy_with_logits(module(shard.numeric, shard.category), shard.label, reduction="none")
        loss = found.mean() if shard.weight is None else (found * shard.weight).sum() / shard.weight.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if model.clip:
            nn.utils.clip_grad_norm_(module.parameters(), model.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, 20, model.lr, model.schedule)
        optimizer.step()
        losses.append(loss.item())
        weights.append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())
    return module, weights, losses


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.SGD, {"lr": 0.3}),
        (partial(torch.optim.SGD, momentum=0.9, nesterov=True), {"lr": 0.1}),
        (partial(torch.optim.AdamW, betas=(0.8, 0.99), amsgrad=True), {"clip": 0.05}),
        (torch.optim.Adagrad, {"lr": 0.05, "schedule": "linear"}),
        (torch.optim.RMSprop, {"schedule": "constant"}),
        (torch.optim.NAdam, {"schedule": lambda share: 1 - share}),
        (torch.optim.Adafactor, {"lr": 0.01}),
    ],
)
def test_each_optimizer_moves_as_in_a_plain_loop(optimizer: Any, settings: dict[str, Any], weighed: bool) -> None:
    model = Torch(Net, batch=400, shards=8, optimizer=optimizer, **settings)
    made, seen, _ = ours(model, rows(weighed))
    make = partial(optimizer, lr=model.lr, weight_decay=model.weight_decay)
    _, weights, losses = plain(model, rows(weighed), make)
    assert [step.loss for step in seen] == pytest.approx(losses, rel=1e-5)
    found = nn.utils.parameters_to_vector(made.module.parameters()).detach()
    start = nn.utils.parameters_to_vector(building.construct(model, rows().shape).parameters()).detach()
    assert (weights[-1] - start).abs().max() > 1e-3, "it moved at all"
    # an adaptive optimizer moves by lr even where a gradient is rounding only: nearly all, not all, are equal
    assert torch.isclose(found, weights[-1], rtol=1e-4, atol=2e-5).float().mean() > 0.995
    if weighed:
        assert abs(seen[0].loss - plain(model, rows(), make, 1)[2][0]) > 1e-4


def test_the_norm_is_that_of_the_whole_gradient_and_clipping_bounds_the_step() -> None:
    settings: dict[str, Any] = {
        "optimizer": torch.optim.SGD,
        "lr": 1.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "batch": 400,
    }
    made, (seen,), _ = ours(Torch(Net, **settings), rows(), 1)
    start = building.construct(Torch(Net, **settings), rows().shape)
    moved = nn.utils.parameters_to_vector(made.module.parameters()) - nn.utils.parameters_to_vector(start.parameters())
    assert seen.gradient_norm == pytest.approx(float(moved.detach().norm()), rel=1e-4)
    clipped, (again,), _ = ours(Torch(Net, clip=0.01, **settings), rows(), 1)
    moved = nn.utils.parameters_to_vector(clipped.module.parameters()) - nn.utils.parameters_to_vector(start.parameters())
    assert again == seen, "it is seen before clipping"
    assert float(moved.detach().norm()) == pytest.approx(0.01, rel=1e-4)


def test_the_average_is_of_the_weights_after_each_step() -> None:
    model = Torch(Net, batch=400, average=0.6, optimizer=torch.optim.SGD, lr=0.3)
    made, _, _ = ours(model, rows())
    _, weights, _ = plain(model, rows(), partial(torch.optim.SGD, lr=0.3, weight_decay=1e-4))
    expected = nn.utils.parameters_to_vector(building.construct(model, rows().shape).parameters()).detach()
    for step, newest in enumerate(weights):
        kept = min(0.6, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * newest
    found = np.concatenate([value.ravel() for value in made.weights().values()])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    newest = nn.utils.parameters_to_vector(made.module.parameters()).detach()
    np.testing.assert_allclose(newest.numpy(), weights[-1].numpy(), rtol=1e-4, atol=1e-6)
    with made.judged() as module:
        assert not module.training
        assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), torch.from_numpy(found))
    assert made.module.training
    assert torch.equal(nn.utils.parameters_to_vector(made.module.parameters()), newest)


@pytest.mark.parametrize(
    "settings",
    [
        {"average": 0.9, "clip": 0.1},
        {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
        {"optimizer": torch.optim.Adafactor},
        {"optimizer": torch.optim.NAdam, "precision": "bfloat16"},
    ],
)
def test_a_learner_goes_on_from_its_tensors_with_the_same_bytes(settings: dict[str, Any]) -> None:
    model = Torch(Net, batch=400, **settings)
    whole, _, _ = ours(model, rows(), 6)
    first, _, feed = ours(model, rows(), 3)
    kept = {name: np.array(value) for name, value in first.tensors().items()}
    again = Learner(building.construct(model, rows().shape), model, BINARY, "cpu", 20)
    again.restore(kept, 3)
    assert checkpoint.digest(again.tensors()) == checkpoint.digest(kept)
    for step in range(3, 6):
        again.step(step, feed.shards(step), feed.batch, Group())
    assert checkpoint.digest(again.tensors()) == checkpoint.digest(whole.tensors())
    assert checkpoint.digest(again.weights()) == checkpoint.digest(whole.weights())


@pytest.mark.parametrize(
    ("way", "options", "sparse"),
    [
        ("", {}, ["table"]),
        ("twice", {}, ["table"]),
        ("shared weight", {}, []),
        ("weight used", {}, []),
        ("changed in place", {}, []),
        ("some ids only", {}, []),
        ("", {"padding_idx": 0}, []),
        ("", {"max_norm": 1.0}, []),
        ("", {"scale_grad_by_freq": True}, []),
    ],
)
def test_what_cannot_be_sparse_takes_the_dense_path_and_both_are_right(
    way: str, options: dict[str, Any], sparse: list[str]
) -> None:
    if way == "changed in place":  # torch itself allows it, for an embedding's output is no leaf there
        assert building.construct(Torch(Net, options={"way": way}), rows().shape)(
            *map(torch.from_numpy, (rows().numeric, rows().category))
        ).requires_grad
    model = Torch(Net, batch=400, optimizer=torch.optim.SGD, lr=0.1, options={"way": way, **options})
    made, seen, _ = ours(model, rows())
    assert [table.name for table in made._tables or [] if table.each] == sparse
    if way == "some ids only" or "scale_grad_by_freq" in options:
        return  # such a model gives another loss for shards than for whole batches
    _, weights, losses = plain(model, rows(), partial(torch.optim.SGD, lr=0.1, weight_decay=1e-4))
    assert [step.loss for step in seen] == pytest.approx(losses, rel=1e-5)
    found = nn.utils.parameters_to_vector(made.module.parameters()).detach()
    np.testing.assert_allclose(found.numpy(), weights[-1].numpy(), rtol=1e-3, atol=1e-6)


def test_a_small_table_is_added_by_the_tree() -> None:
    made, _, _ = ours(Torch(Net, batch=800, shards=8), rows())
    assert made._tables == [], "60 ids are fewer than the 100 rows of a shard"


def test_bfloat16_is_close_to_float32_and_not_it() -> None:
    _, exact, _ = ours(Torch(Net, batch=400), rows())
    _, rough, _ = ours(Torch(Net, batch=400, precision="bfloat16"), rows())
    assert [seen.loss for seen in rough] == pytest.approx([seen.loss for seen in exact], rel=0.02)
    assert rough != exact


def test_a_step_whose_rows_do_not_count_moves_nothing_but_decay() -> None:
    nothing = TrainingSet(rows().numeric, rows().category, rows().label, rows().shape, np.zeros(2000, np.float32))
    _, (seen,), _ = ours(Torch(Net, batch=400), nothing, 1)
    assert seen.loss == seen.gradient_norm == 0.0


class Grouped(Net):
    """The last layer learns at a tenth of the rate, and does not decay."""

    def groups(self) -> list[dict[str, Any]]:
        rest = [parameter for name, parameter in self.named_parameters() if not name.startswith("last")]
        return [{"params": rest}, {"params": self.last.parameters(), "lr": 0.1, "weight_decay": 0.0}]


def test_a_module_may_group_its_parameters() -> None:
    settings: dict[str, Any] = {
        "optimizer": torch.optim.SGD,
        "lr": 0.5,
        "weight_decay": 0.0,
        "schedule": "constant",
        "batch": 400,
    }
    alike, grouped = (ours(Torch(kind, **settings), rows(), 1)[0].module for kind in (Net, Grouped))
    start = building.construct(Torch(Net, **settings), rows().shape)
    for name, factor in (("hidden.weight", 1.0), ("last.weight", 0.1)):
        before = start.get_parameter(name).detach()
        moved = grouped.get_parameter(name).detach() - before
        torch.testing.assert_close(moved, factor * (alike.get_parameter(name).detach() - before), rtol=1e-4, atol=1e-7)


def test_the_courses_values_count_from_their_epoch_on() -> None:
    model = Torch(Net, batch=400, epochs=4, schedule="constant", lr=0.1, course=((2, {"lr": 0.01}),))
    _, seen, _ = ours(model, rows(), 20)
    assert [step.rate for step in seen] == [0.1] * 10 + [0.01] * 10


class Forgetful(Grouped):
    """Its groups miss a layer."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self.last.parameters()}]


class Negative(Grouped):
    """Its groups want to learn backwards."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "lr": -1.0}]


class Twofold(torch.optim.SGD):
    """An optimizer whose state no array can hold."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["past"] = [1, 2]
        return super().step(closure)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Torch(Net, optimizer=torch.optim.LBFGS), "making the optimizer raised TypeError"),
        (
            Torch(
                Net, optimizer=lambda params, lr, weight_decay: torch.optim.LBFGS([p for g in params for p in g["params"]], lr)
            ),
            "LBFGS wants to compute the loss several times",
        ),
        (Torch(Net, optimizer=lambda params, lr, weight_decay: None), "optimizer gave a NoneType"),
        (
            Torch(Net, optimizer=lambda params, lr, weight_decay: torch.optim.SparseAdam(params, lr)),
            "the optimizer's step raised RuntimeError",
        ),
        (Torch(Net, schedule=lambda share: math.nan), "the schedule gave nan"),
        (Torch(Net, schedule=lambda share: 1 / share), "the schedule raised ZeroDivisionError"),
        (Torch(Forgetful), "groups() does not name"),
        (Torch(Negative), "groups() gave lr=-1.0"),
        (Torch(Net, optimizer=Twofold), "Twofold keeps 'past' as list, which no checkpoint can hold"),
    ],
)
def test_what_cannot_be_trained_is_said(model: Torch, said: str) -> None:
    with pytest.raises(TrainingFailed) as caught:
        ours(model, rows(), 1)[0].tensors()
    assert caught.value.found.startswith(said)


class Wandering(Net):
    """The number of ids it looks up depends on the rows' values."""

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        more = self.table(category[:, 1][numeric[:, 0] > 0]).sum()
        return super().forward(numeric, category) + 0 * more


def test_look_ups_that_depend_on_values_are_refused_with_the_way_out() -> None:
    with pytest.raises(TrainingFailed, match=r"looked up \d+ ids of table for 50 rows.*torch.nn.functional.embedding"):
        ours(Torch(Wandering, batch=400), rows(), 1)


@given(st.integers(1, 500), st.floats(1e-6, 10))
def test_rates_stay_between_nothing_and_the_peak(total: int, peak: float) -> None:
    for schedule in ("cosine", "linear", "constant"):
        rates = [rate(step, total, peak, schedule) for step in range(total)]
        assert all(0 <= found <= peak * (1 + 1e-12) for found in rates)
        assert max(rates) == pytest.approx(peak)
        if schedule != "constant" and total > 50:
            assert rates[-1] < 0.05 * peak


def test_the_cosine_rises_over_a_tenth() -> None:
    rates = [rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9


def run(losses: list[float], norm: float = 1.0) -> tuple[int, str]:
    """The step at which these losses are given up, and why."""
    level = Level()
    for step, loss in enumerate(losses):
        if said := fault(Seen(loss, norm), level):
            return step, said
        level = Level.of(level.after(Seen(loss, norm)).numbers())
    return -1, ""


def test_a_loss_or_gradient_that_is_no_number_ends_a_run_at_once() -> None:
    assert run([0.7, math.nan]) == (1, "its loss is nan, no number")
    assert run([math.inf]) == (0, "its loss is inf, no number")
    assert run([0.7], math.inf) == (0, "the norm of its gradient is inf, no number")


def test_an_explosion_ends_a_run_after_ten_steps_however_slow_it_is() -> None:
    assert run([0.7] * 50 + [0.7 * 1.05**at for at in range(90)])[0] in range(50 + 47 + 9, 50 + 47 + 12)
    step, said = run([0.7] + [100.0] * 20)
    assert step == 10
    assert said == "its loss explodes: 100, and above 7 for 10 steps, where 0.7 was reached"


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=200), st.integers(0, 199))
def test_odd_batches_end_no_run(losses: list[float], at: int) -> None:
    losses = [1.0, *losses]
    losses[at % len(losses)] = 1e4 if at % len(losses) else 1.0
    assert run(losses) == (-1, "")


def test_small_losses_may_wander_below_the_start() -> None:
    assert run([0.7] + [1e-6] * 100 + [0.5] * 100) == (-1, "")


def test_a_learner_says_that_its_run_is_lost() -> None:
    model = Torch(Net, batch=400, optimizer=torch.optim.SGD, lr=1e30, schedule="constant", weight_decay=0.0)
    feed = Feed(rows(), "d", model, BINARY, Group())
    made = Learner(building.construct(model, rows().shape), model, BINARY, "cpu", 20)
    said = [made.fault(made.step(step, feed.shards(step), feed.batch, Group())) for step in range(3)]
    assert said[0] == ""
    assert any("no number" in text for text in said)
