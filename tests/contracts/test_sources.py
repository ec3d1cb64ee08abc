"""Every kind of source, found by itself: what a declared value must be, before it meets any world. tests/data/test_sources.py runs them all."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from importlib import import_module
from typing import Any

import pytest

import ct
from ct.data import sources
from ct.errors import InvalidPipeline
from ct.ids import describe, fingerprint
from ct.roles import Source
from tests.data.source_worlds import WORLDS


def kinds() -> list[type[Any]]:
    """Every class of ct.data.sources that can give an example of itself."""
    found = []
    for info in pkgutil.iter_modules(sources.__path__):
        module = import_module(f"{sources.__name__}.{info.name}")
        found += [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [kind for kind in found if hasattr(kind, "example")]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_source_is_a_frozen_value_with_a_public_name(kind: type[Any]) -> None:
    source = kind.example()
    assert isinstance(source, Source)
    assert getattr(ct, kind.__name__) is kind
    assert kind.__doc__
    assert kind.example() == source
    assert hash(kind.example()) == hash(source)
    assert fingerprint(source) == fingerprint(kind.example())
    assert json.dumps(describe(source))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(source, dataclasses.fields(source)[0].name, "other")
    assert kind(**json.loads(json.dumps(dataclasses.asdict(source)))) == source, "it travels to a child process as JSON"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_source_says_what_it_is_in_one_line(kind: type[Any]) -> None:
    text = kind.example().explain()
    assert text.isprintable()
    assert 0 < len(text) < 200


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_table_takes_it_as_its_source(kind: type[Any]) -> None:
    table = ct.Table("orders", key="id", time="at", source=kind.example())
    assert table.source == kind.example()
    assert fingerprint(table) != fingerprint(ct.Table("orders", key="id", time="at"))


def test_every_kind_has_a_world_in_which_it_is_tried() -> None:
    assert {kind.__name__ for kind in kinds()} == set(WORLDS)


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(InvalidPipeline, match=r"ct\.Folder"):
        ct.Table("orders", key="id", time="at", source="landing/orders")  # type: ignore[arg-type]
