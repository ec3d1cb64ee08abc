"""Profiles: what they count, that they merge in any order, that JSON keeps them."""

from functools import reduce
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.data.columns import NO_TIME
from ct.data.profile import Categories, Numbers, Profile
from ct.errors import Corrupt


def columns(seed: int, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    number = rng.normal(size=n)
    number[rng.random(n) < 0.1] = np.nan
    text = rng.choice(np.array(["a", "b", "c", None], dtype=object), size=n)
    time = rng.integers(0, 10**15, size=n)
    time[: n // 10] = NO_TIME
    return {"number": number, "text": text, "time": time}


def counts(profile: Profile) -> object:
    return [
        (name, c.count, c.missing, dict(c.counts) if isinstance(c, Categories) else c.counts)
        for name, c in profile.columns.items()
    ]


def test_counts_add_up_to_the_rows() -> None:
    profile = Profile.of(columns(0, 1000))
    assert profile.rows == 1000
    for column in profile.columns.values():
        assert column.count + column.missing == 1000
        total = sum(column.counts.values()) + column.other if isinstance(column, Categories) else sum(column.counts)
        assert total == column.count


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 2**16))
def test_merging_the_parts_is_the_profile_of_the_whole(sizes: list[int], seed: int) -> None:
    reference = Profile.of(columns(99, 500))
    parts = [columns(seed + i, n) for i, n in enumerate(sizes)]
    whole = Profile.of({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, like=reference)
    for order in list(permutations(range(len(parts))))[:6]:
        merged = reduce(Profile.merge, [Profile.of(parts[i], like=reference) for i in order])
        assert counts(merged) == counts(whole)
        for name, column in whole.columns.items():
            if isinstance(column, Numbers) and column.count:
                other = merged.columns[name]
                assert isinstance(other, Numbers)
                assert (other.low, other.high) == (column.low, column.high)
                assert other.mean == pytest.approx(column.mean)
                assert other.m2 == pytest.approx(column.m2, rel=1e-9, abs=1e-9)


def test_bytes_keep_everything_and_have_one_spelling() -> None:
    for rows in (columns(1, 300), {"empty": np.array([np.nan, np.nan]), "none": np.array([None, None], dtype=object)}):
        data = Profile.of(rows).to_bytes()
        assert Profile.from_bytes(data).to_bytes() == data
        assert Profile.of(rows).to_bytes() == data


def test_infinities_count_as_missing() -> None:
    column = Profile.of({"x": np.array([1.0, np.inf, -np.inf, np.nan])}).columns["x"]
    assert (column.count, column.missing) == (1, 3)


@pytest.mark.parametrize("now", [3.0, 5.0001, 7.0])
def test_leaving_a_constant_shows_in_the_counts(now: float) -> None:
    reference = Profile.of({"x": np.full(100, 5.0)})
    current = Profile.of({"x": np.full(100, now)}, like=reference)
    assert current.columns["x"].counts != reference.columns["x"].counts


def test_new_values_go_to_other() -> None:
    reference = Profile.of({"c": np.array(["a", "b"], dtype=object)})
    column = Profile.of({"c": np.array(["a", "z", "z", None], dtype=object)}, like=reference).columns["c"]
    assert isinstance(column, Categories)
    assert (dict(column.counts), column.other, column.missing) == ({"a": 1, "b": 0}, 2, 1)


def test_unlike_profiles_do_not_merge() -> None:
    with pytest.raises(Corrupt, match="edges"):
        Profile.of({"x": np.arange(9.0)}).merge(Profile.of({"x": np.arange(5.0)}))
    text = np.array(["a", "b"], dtype=object)
    with pytest.raises(Corrupt, match="edges"):
        Profile.of({"x": np.arange(2.0)}).merge(Profile.of({"x": text}))
    with pytest.raises(Corrupt, match="values"):
        Profile.of({"x": text}).merge(Profile.of({"x": text[:1]}))
