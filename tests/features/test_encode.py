"""Fitted state: what it learns, how it treats the missing and the unknown, and that one row is encoded like a million."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import text

from ct.features.encode import CLIP, MISSING, RARE, UNKNOWN, Encoder
from ct.roles import Column

OUTPUTS = (Column("town", "category"), Column("leg", "numeric"), Column("late", "numeric"))
TRAIN = {
    "town": text(["A"] * 6 + ["B"] * 5 + ["rare"] * 3 + ["once"] + [None]),
    "leg": np.arange(16.0),
    "late": np.array([1.0, 3.0] * 7 + [math.nan, math.inf]),
}
values = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300]), st.floats())


def fitted() -> Encoder:
    return Encoder.fit(TRAIN, OUTPUTS)


def rows(**changes):
    return {"town": text(["A"]), "leg": np.array([7.5]), "late": np.array([2.0]), **changes}


def test_categories():
    encoder = fitted()
    assert encoder.cardinalities == (5,)
    asked = rows(town=text([None, "never seen", "once", "rare", "A", "B"]), leg=np.zeros(6), late=np.zeros(6))
    assert encoder.category(asked)[:, 0].tolist() == [MISSING, UNKNOWN, UNKNOWN, RARE, 3, 4]
    assert encoder.category(asked).dtype == np.int64


def test_numbers():
    encoder = fitted()
    assert encoder.numeric_names == ("leg", "late", "late?")
    made = encoder.numeric(rows())
    assert made.dtype == np.float32
    assert made.tolist() == [[0.0, 0.0, 0.0]]
    assert encoder.numeric(rows(late=np.array([3.0])))[0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_missing_and_infinite_numbers_become_zero_and_are_flagged(missing):
    assert fitted().numeric(rows(late=np.array([missing])))[0].tolist() == [0.0, 0.0, 1.0]
    assert fitted().numeric(rows(leg=np.array([missing])))[0].tolist() == [0.0, 0.0, 0.0], "training had none, so no flag"


def test_outliers_are_clipped():
    assert fitted().numeric(rows(leg=np.array([1e300])))[0, 0] == CLIP
    assert fitted().numeric(rows(leg=np.array([-1e300])))[0, 0] == -CLIP


@pytest.mark.parametrize(
    "column", [np.full(10, 0.1), np.full(10, math.nan), np.array([0.1 + 0.2, 0.3] * 5), np.array([1e308] * 10), np.empty(0)]
)
def test_a_column_without_spread_stays_finite(column):
    encoder = Encoder.fit({"a": column}, [Column("a", "numeric")])
    made = encoder.numeric({"a": np.array([0.3, 5.0, math.nan])})
    assert np.isfinite(made).all()
    assert Encoder.from_json(encoder.to_json()) == encoder


def test_the_json_form_is_stable_and_complete():
    encoder = fitted()
    back = Encoder.from_json(encoder.to_json())
    assert back == encoder
    assert back.to_json() == encoder.to_json()
    shuffled = np.random.default_rng(1).permutation(16)
    again = Encoder.fit({name: column[shuffled] for name, column in TRAIN.items()}, OUTPUTS)
    assert again.categories == encoder.categories


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "é", None]), values, values), min_size=1, max_size=40))
def test_one_row_is_encoded_like_many(drawn):
    many = {
        "town": text([row[0] for row in drawn]),
        "leg": np.array([row[1] for row in drawn]),
        "late": np.array([row[2] for row in drawn]),
    }
    encoder = fitted()
    numeric, category = encoder.numeric(many), encoder.category(many)
    assert np.isfinite(numeric).all()
    for at in range(len(drawn)):
        one = {name: column[at : at + 1] for name, column in many.items()}
        assert encoder.numeric(one).tobytes() == numeric[at : at + 1].tobytes()
        assert encoder.category(one).tolist() == category[at : at + 1].tolist()


def test_a_pipeline_without_numbers_or_without_categories():
    only = Encoder.fit({"town": TRAIN["town"]}, OUTPUTS[:1])
    assert only.numeric({"town": text(["A", "B"])}).shape == (2, 0)
    numbers = Encoder.fit({"leg": TRAIN["leg"]}, OUTPUTS[1:2])
    assert numbers.category({"leg": np.zeros(2)}).shape == (2, 0)
