"""What a user declares: faults are named, searches become values, trial lists follow from the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import InvalidPipeline
from ct.ids import fingerprint
from ct.training.declare import Search, Torch
from ct.training.sweep import settings
from delay_model import DelayNet


def test_faults_are_named() -> None:
    wrong = Torch("DelayNet", epochs=0, lr=-1, batch=100, shards=3, seed=-1)
    text = " ".join(wrong.validate())
    for name in ("model", "epochs", "lr", "shards", "seed"):
        assert name in text
    assert Torch(DelayNet).validate() == []


@pytest.mark.parametrize("build", [lambda: Search(2, 1), lambda: Search(0, 1, log=True), lambda: Search()])
def test_an_empty_range_is_refused(build: object) -> None:
    with pytest.raises(InvalidPipeline):
        build()  # type: ignore[operator]


def test_searches_become_values() -> None:
    model = Torch(
        DelayNet, lr=Search(1e-4, 1e-2, log=True), options={"width": Search(64, 256), "dropout": Search(choices=[0.1, 0.2])}
    )
    assert set(model.searches()) == {"lr", "options.width", "options.dropout"}
    middle = model.resolved({})
    assert middle.lr == pytest.approx(1e-3)
    assert middle.options == {"width": 160, "dropout": 0.1}
    assert model.resolved({"options.width": 77}).options["width"] == 77
    assert middle.searches() == {}
    with pytest.raises(InvalidPipeline, match="epochs"):
        model.resolved({"epochs": 3})


def test_a_declaration_has_a_stable_fingerprint() -> None:
    assert fingerprint(Torch(DelayNet, lr=Search(1e-4, 1e-2))) == fingerprint(Torch(DelayNet, lr=Search(1e-4, 1e-2)))
    assert fingerprint(Torch(DelayNet, seed=1)) != fingerprint(Torch(DelayNet, seed=2))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_a_longer_list_of_trials_begins_with_the_shorter(few: int, more: int, seed: int) -> None:
    searches = {"lr": Search(1e-4, 1e-2, log=True), "options.width": Search(16, 256)}
    short, long = settings(searches, few, seed), settings(searches, few + more, seed)
    assert long[:few] == short
    assert len({str(item) for item in long}) == few + more
    assert all(1e-4 <= item["lr"] < 1e-2 and isinstance(item["options.width"], int) for item in long)


def test_a_small_space_is_tried_once() -> None:
    assert len(settings({"options.width": Search(choices=[8, 16])}, 10, 0)) == 2
