"""An encoder that goes on from an earlier one: every value keeps its meaning, new ones begin as what they were taken for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ct.features import continuing
from ct.features.encode import Encoder
from ct.roles import Column

OUTPUTS = (
    Column("price", "numeric"),
    Column("age", "numeric", bins=4),
    Column("town", "category", rare=3),
    Column("user", "category", hashed=16),
)
TOWNS = st.lists(st.sampled_from(["Oslo", "Rome", "Lima", "Bern", None]), min_size=30, max_size=60)


def columns(towns: list[Any], *, price: float = 10.0, spread: float = 3.0, seed: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "price": random.normal(price, spread, len(towns)),
        "age": random.normal(40, 10, len(towns)),
        "town": np.array(towns, dtype=object),
        "user": np.array([f"u{at}" for at in range(len(towns))], dtype=object),
    }


@given(TOWNS, TOWNS)
def test_every_row_begins_as_what_it_was(old: list[Any], new: list[Any]) -> None:
    earlier, fitted = Encoder.fit(columns(old), OUTPUTS), Encoder.fit(columns(new, seed=2), OUTPUTS)
    later = continuing.continued(earlier, fitted)
    sources = continuing.sources(earlier, later)
    seen = columns([*old, *new, "Nowhere"], seed=3)
    np.testing.assert_array_equal(earlier.numeric(seen), later.numeric(seen))
    before, now = earlier.category(seen), later.category(seen)
    for at, rows in enumerate(sources):
        np.testing.assert_array_equal(rows[now[:, at]], before[:, at])
        assert len(rows) == later.cardinalities[at]
    assert set(fitted.categories[1].values) <= set(later.categories[1].values)  # type: ignore[union-attr]
    assert continuing.continued(later, fitted) == later, "going on twice changes nothing"


def test_what_does_not_fit_is_said() -> None:
    towns = ["Oslo", "Rome", "Lima"] * 20
    earlier = Encoder.fit(columns(towns), OUTPUTS)
    assert continuing.fault(earlier, Encoder.fit(columns(towns, seed=2), OUTPUTS)) == ""
    assert "the scale of price has moved" in continuing.fault(earlier, Encoder.fit(columns(towns, price=30), OUTPUTS))
    assert "the scale of price has moved" in continuing.fault(earlier, Encoder.fit(columns(towns, spread=30), OUTPUTS))
    other = Encoder.fit(columns(towns), (OUTPUTS[0], *OUTPUTS[2:]))
    assert "encoded in another way" in continuing.fault(earlier, other)
    wider = replace(OUTPUTS[3], hashed=32)
    assert "encoded in another way" in continuing.fault(earlier, Encoder.fit(columns(towns), (*OUTPUTS[:3], wider)))
    raw = replace(OUTPUTS[0], scaled=False)
    assert "scaled in another way" in continuing.fault(earlier, Encoder.fit(columns(towns), (raw, *OUTPUTS[1:])))
