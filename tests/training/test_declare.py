"""What a user declares: faults are named, searches become values, trial lists follow from the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import InvalidPipeline
from ct.ids import fingerprint
from ct.training.declare import Search, Torch
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


def test_batch_and_epochs_may_be_searched() -> None:
    model = Torch(DelayNet, epochs=Search(1, 4), batch=Search(choices=[256, 512]), average=Search(0.5, 0.9))
    assert model.validate() == []
    assert set(model.searches()) == {"epochs", "batch", "average"}
    assert model.resolved({"epochs": 4}).epochs == 4
    text = " ".join(Torch(DelayNet, epochs=Search(0, 4), batch=Search(256, 512), average=Search(0.5, 1.5)).validate())
    assert all(name in text for name in ("epochs is", "batch is", "average is"))
    assert "lr is" in " ".join(Torch(DelayNet, lr=Search(-1, 1)).validate())
    assert "batch is" in " ".join(Torch(DelayNet, batch=Search(choices=[100])).validate())


@given(st.floats(0, 1, exclude_max=True), st.booleans(), st.booleans())
def test_every_share_of_a_range_is_in_it(share: float, log: bool, up: bool) -> None:
    for search in (Search(1, 7, log=log), Search(0.5, 7.0, log=log), Search(choices=["a", [1, 2], None])):
        value = search.at(share)
        assert search.holds(value)
        assert search.holds(search.near(value, up=up))
    assert {Search(1, 3).at(at / 30) for at in range(30)} == {1, 2, 3}


def test_a_neighbour_is_another_value_within_the_range() -> None:
    assert Search(1e-4, 1e-2, log=True).near(1e-3, up=True) == pytest.approx(1.25e-3)
    assert Search(1e-4, 1e-2, log=True).near(9e-3, up=True) == 1e-2
    assert Search(1, 9).near(2, up=False) == 1
    assert Search(0.0, 1.0).near(0.0, up=True) == pytest.approx(0.1)
    assert Search(choices=["a", "b"]).near("b", up=True) == "b"


@pytest.mark.parametrize(
    "build",
    [
        lambda: Search(0, float("inf")),
        lambda: Search(choices=[1, 1]),
        lambda: Search(1, 2, choices=[3]),
        lambda: Search(choices=[{1}]),
    ],
)
def test_a_search_that_says_nothing_clear_is_refused(build: object) -> None:
    with pytest.raises(InvalidPipeline):
        build()  # type: ignore[operator]


def test_a_course_changes_values_between_epochs() -> None:
    model = Torch(DelayNet, epochs=9, lr=1e-2, course=((3, {"lr": 5e-3}), (6, {"lr": 1e-3, "clip": 1.0})))
    assert model.validate() == []
    assert [(model.during(at).lr, model.during(at).clip) for at in (0, 2, 3, 6, 8)] == [
        (1e-2, 0.0),
        (1e-2, 0.0),
        (5e-3, 0.0),
        (1e-3, 1.0),
        (1e-3, 1.0),
    ]
    for course in (((0, {"lr": 1.0}),), ((3, {}), (2, {})), ((1, {"batch": 8}),)):
        assert "course" in " ".join(Torch(DelayNet, course=course).validate())
