"""Profiles: what they count, by slice too, that they merge in any order, that the form of the input does not matter, that bytes keep them."""

from contextlib import suppress
from functools import reduce
from itertools import pairwise, permutations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.data.columns import NO_TIME
from ct.data.profile import SLICES, Categories, Numbers, Profile, Profiles
from ct.errors import Corrupt, InvalidShard

STAMP = pa.timestamp("us", tz="UTC")


def columns(seed: int, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    number = rng.normal(size=n)
    number[rng.random(n) < 0.1] = np.nan
    text = rng.choice(np.array(["a", "b", "c", None], dtype=object), size=n)
    time = rng.integers(0, 10**15, size=n)
    time[: n // 10] = NO_TIME
    return {"number": number, "text": text, "time": time, "flag": (rng.random(n) < 0.3).astype(float)}


def arrow(rows: dict[str, np.ndarray]) -> pa.Table:
    made = {}
    for name, values in rows.items():
        if values.dtype == np.int64:
            made[name] = pa.array(values, pa.int64(), mask=values == NO_TIME).cast(STAMP)
        else:
            made[name] = pa.array(values, pa.string() if values.dtype == object else pa.float64(), from_pandas=True)
    return pa.table(made)


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def exact(profile: Profile) -> object:
    """What must not depend on the order of merging: all but mean and m2."""
    made = []
    for name, c in sorted(profile.columns.items()):
        counted = dict(c.counts) if isinstance(c, Categories) else (c.counts, repr(c.low), repr(c.high), c.edges)
        made.append((name, c.count, c.missing, counted, getattr(c, "other", 0), getattr(c, "known", None), c.sketch))
    return profile.rows, made


def everything(profiles: Profiles) -> dict[object, object]:
    return {None: exact(profiles.whole)} | {label: exact(profiles.slice(*label)) for label in profiles.slices()}  # type: ignore[arg-type]


def close(a: Profile, b: Profile) -> None:
    for name, column in a.columns.items():
        if isinstance(column, Numbers) and column.count:
            other = b.columns[name]
            assert isinstance(other, Numbers)
            assert other.mean == pytest.approx(column.mean, rel=1e-12, abs=1e-12)
            assert other.m2 == pytest.approx(column.m2, rel=1e-9, abs=1e-9)


def test_counts_add_up_to_the_rows() -> None:
    profile = Profile.of(columns(0, 1000))
    assert profile.rows == 1000
    for column in profile.columns.values():
        assert column.count + column.missing == 1000
        total = sum(column.counts.values()) + column.other if isinstance(column, Categories) else sum(column.counts)
        assert total == column.count


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 2**16), st.data())
def test_merging_the_parts_in_any_order_and_grouping_is_the_profile_of_the_whole(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    reference = Profiles.of(columns(99, 500), ["text"])
    rows = [columns(seed + i, n) for i, n in enumerate(sizes)]
    whole = Profiles.of(joined(rows), ["text"], like=reference)
    parts = [Profiles.of(part, ["text"], like=reference) for part in data.draw(st.permutations(rows))]
    while len(parts) > 1:  # any two, again and again
        a = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        b = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(a.merge(b))
    assert everything(parts[0]) == everything(whole)
    close(whole.whole, parts[0].whole)
    for label in whole.slices():
        close(whole.slice(*label), parts[0].slice(*label))  # type: ignore[arg-type]


def test_a_slice_is_the_profile_of_its_rows() -> None:
    rows = columns(1, 3000)
    whole = Profiles.of(rows, ["text"])
    assert whole.slices() == (("text", "a"), ("text", "b"), ("text", "c"), ("text", "(missing)"))
    for value in ("a", "b", "c", None):
        kept = rows["text"] == value
        alone = Profile.of({name: values[kept] for name, values in rows.items()}, like=whole.whole)
        found = whole.slice("text", value)
        assert found is not None
        assert found.rows == kept.sum()
        close(alone, found)
        for name, column in alone.columns.items():
            other = found.columns[name]
            assert (other.count, other.missing, other.counts) == (column.count, column.missing, column.counts)
            assert repr(getattr(other, "low", 0)) == repr(getattr(column, "low", 0))
            assert repr(getattr(other, "high", 0)) == repr(getattr(column, "high", 0))
    assert whole.slice("text", "nowhere") is None
    assert whole.slice("flag", "a") is None


def test_several_slice_columns_each_hold_every_row() -> None:
    rows = columns(2, 500)
    rows["zone"] = np.where(rows["flag"] > 0, "north", "south").astype(object)
    found = Profiles.of(rows, ["text", "zone"])
    for column in ("text", "zone"):
        assert sum(found.slice(c, v).rows for c, v in found.slices() if c == column and v != "(missing)") + (  # type: ignore[union-attr]
            missing.rows if (missing := found.slice(column, None)) else 0
        ) == len(rows["flag"])


def test_slices_beyond_the_cap_are_one_and_known_ones_stay() -> None:
    names = np.array([f"v{i:03d}" for i in range(SLICES + 50)], dtype=object)
    rows = {"c": np.repeat(names, np.arange(len(names)) + 1), "x": np.arange(len(names) * (len(names) + 1) // 2, dtype=float)}
    first = Profiles.of(rows, ["c"])
    assert len(first.slices()) == SLICES + 1
    assert first.slice("c", "v049") is None  # the rarest fifty
    assert first.slice("c", "(other)").rows == 50 * 51 // 2  # type: ignore[union-attr]
    later = Profiles.of({"c": np.array(["v249", "v000", "new"], dtype=object), "x": np.zeros(3)}, ["c"], like=first)
    assert later.slices() == (("c", "v249"), ("c", "(other)"))


def test_a_new_slice_has_a_profile_of_its_own_and_merges() -> None:
    first = Profiles.of({"c": np.array(["a", "a"], dtype=object), "x": np.array([1.0, 2.0])}, ["c"])
    later = Profiles.of({"c": np.array(["b", None], dtype=object), "x": np.array([2.0, 2.0])}, ["c"], like=first)
    both = first.merge(later)
    assert both.slices() == (("c", "(missing)"), ("c", "a"), ("c", "b"))
    assert [both.slice(*label).rows for label in both.slices()] == [1, 2, 1]  # type: ignore[union-attr, arg-type]


def test_slices_are_by_text_columns() -> None:
    with pytest.raises(InvalidShard, match="'flag' is no column of text"):
        Profiles.of(columns(0, 10), ["flag"])
    with pytest.raises(InvalidShard, match="'nowhere'"):
        Profiles.of(columns(0, 10), ["nowhere"])


def test_arrow_in_any_chunks_and_numpy_give_the_same_bytes() -> None:
    rows = columns(3, 200_000)  # over several blocks, and more than the sample
    rows["id"] = np.array([f"row {i}" for i in range(200_000)], dtype=object)
    table = arrow(rows)
    cuts = [0, 1, 777, 65_536, 65_537, 130_000, 199_999, 200_000]
    pieces = pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(cuts)])
    expected = Profiles.of(table, ["text"]).to_bytes()
    assert Profiles.of(pieces, ["text"]).to_bytes() == expected
    assert Profiles.of(rows, ["text"]).to_bytes() == expected
    assert Profile.of(table).to_bytes() == Profile.of(rows).to_bytes()


def test_other_arrow_types_are_numbers_texts_and_times() -> None:
    table = pa.table(
        {
            "small": pa.array([1, None, 3], pa.int32()),
            "big": pa.array([2**60, 1, None], pa.int64()),
            "flag": pa.array([True, False, None]),
            "long": pa.array(["a", None, "a"], pa.large_string()),
            "day": pa.array([0, 1, None], pa.int32()).cast(pa.date32()),
        }
    )
    found = Profile.of(table).columns
    assert {name: (c.count, c.missing) for name, c in found.items()} == dict.fromkeys(found, (2, 1))
    assert found["long"].counts == {"a": 2}
    assert (found["day"].low, found["day"].high) == (0.0, 86_400.0)  # type: ignore[union-attr]
    assert (found["flag"].low, found["flag"].high, found["flag"].mean) == (0.0, 1.0, 0.5)  # type: ignore[union-attr]


@pytest.mark.parametrize("distinct", [1, 2, 30, 500, 5000, 100_000])
def test_distinct_values_are_estimated(distinct: int) -> None:
    values = np.random.default_rng(distinct).permutation(np.arange(max(distinct, 20_000)) % distinct)
    found = Profile.of({"number": values * 0.25, "text": np.array([f"t{v}" for v in values], dtype=object)})
    margin = 0 if distinct < 10 else 1 if distinct < 100 else 0.08 * distinct
    assert abs(found.columns["number"].distinct - distinct) <= margin
    assert abs(found.columns["text"].distinct - distinct) <= (0 if distinct <= 1000 else margin)


def test_distinct_values_of_slices_are_estimated_and_merge_like_sets() -> None:
    rows = {"c": np.tile(np.array(["a", "b"], dtype=object), 4000), "x": np.repeat(np.arange(4000.0), 2) % 700}
    found = Profiles.of(rows, ["c"])
    again = found.merge(found)
    for value in ("a", "b"):
        column = found.slice("c", value).columns["x"]  # type: ignore[union-attr]
        assert column.distinct == pytest.approx(700, rel=0.3)
        assert again.slice("c", value).columns["x"].distinct == column.distinct  # type: ignore[union-attr]


def test_known_values_are_all_values_until_they_are_too_many() -> None:
    few = Profile.of({"c": np.array([f"v{i % 300}" for i in range(3000)], dtype=object)})
    column = few.columns["c"]
    assert isinstance(column, Categories)
    assert (len(column.counts), column.known) == (64, frozenset(f"v{i}" for i in range(300)))
    more = Profile.of({"c": np.array(["new", None, "v1"], dtype=object)}, like=few)
    assert few.merge(more).columns["c"].known == column.known | {"new"}  # type: ignore[union-attr, operator]
    many = Profile.of({"c": np.array([f"w{i}" for i in range(800)] * 2, dtype=object)}, like=few)
    assert few.merge(many).columns["c"].known is None  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [500, 90_000, 200_000])  # all rows, or a sample of them
def test_texts_that_name_single_rows_are_not_kept(n: int) -> None:
    data = Profile.of({"id": np.array([f"secret-{i}" for i in range(n)], dtype=object)})
    column = data.columns["id"]
    assert isinstance(column, Categories)
    assert (column.counts, column.other, column.known) == ({}, n, None)
    assert column.distinct == pytest.approx(n, rel=0.1)
    assert b"secret" not in data.to_bytes()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 4000), st.sampled_from(["normal", "lognormal", "steps", "constant", "zeros"]), st.integers(0, 99))
def test_quantiles_lie_between_the_edges_beside_the_true_ones(n: int, shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = {
        "normal": rng.normal(size=n),
        "lognormal": rng.lognormal(0, 2, n),
        "steps": rng.integers(0, 5, n).astype(float),
        "constant": np.full(n, 4.5),
        "zeros": np.where(rng.random(n) < 0.8, 0.0, rng.normal(size=n)),
    }[shape]
    column = Profile.of({"x": made}).columns["x"]
    assert isinstance(column, Numbers)
    shares = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)
    found = column.quantiles(*shares)
    assert found is not None
    assert (found[0], found[-1]) == (made.min(), made.max())
    assert list(found) == sorted(found)
    ranked = np.sort(made)
    for share, value in zip(shares, found, strict=True):
        # At most one bin off: a thirty-second of the rows, and one row for rounding.
        low, high = (np.clip(share * n + off * (n / 32 + 1), 0, n - 1) for off in (-1, 1))
        assert np.nextafter(ranked[int(low)], -np.inf) <= value <= ranked[int(np.ceil(high))]


def test_edges_of_a_sample_cut_all_rows_into_nearly_equal_bins_and_its_frequent_values_are_the_frequent_ones() -> None:
    rng, n = np.random.default_rng(5), 300_000  # more than the sample
    names = np.array([f"v{i:03d}" for i in range(300)], dtype=object)
    text = np.concatenate([rng.choice(names[:20], n // 2), rng.choice(names, n // 2)])
    found = Profile.of({"x": np.sort(rng.lognormal(0, 2, n)), "c": text}).columns  # in order, as event times are
    assert sum(found["x"].counts) == n  # type: ignore[arg-type]
    assert np.allclose(found["x"].counts, n / 32, rtol=0.1)  # type: ignore[arg-type]
    counts = found["c"].counts
    assert isinstance(counts, dict)
    assert set(names[:20]) < set(counts)
    assert all(counts[name] == (text == name).sum() for name in names[:20])


def test_nothing_has_no_quantiles() -> None:
    empty = Profile.of({"x": np.array([np.nan])}).columns["x"]
    assert isinstance(empty, Numbers)
    assert empty.quantiles(0.5) is None


def test_bytes_keep_everything_and_have_one_spelling() -> None:
    for rows in (columns(1, 300), {"empty": np.array([np.nan, np.nan]), "none": np.array([None, None], dtype=object)}, {}):
        data = Profile.of(rows).to_bytes()
        assert Profile.from_bytes(data).to_bytes() == data
        assert exact(Profile.from_bytes(data)) == exact(Profile.of(rows))
    data = Profiles.of(columns(1, 300), ["text"]).to_bytes()
    assert Profiles.from_bytes(data).to_bytes() == data
    assert everything(Profiles.from_bytes(data)) == everything(Profiles.of(columns(1, 300), ["text"]))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(0, 3000), st.binary(min_size=0, max_size=8))
def test_other_bytes_are_corrupt_or_a_profile_never_another_error(at: int, noise: bytes) -> None:
    data = Profiles.of(columns(1, 50), ["text"]).to_bytes()
    for broken in (data[:at], data[:at] + noise + data[at + len(noise) :], noise + data):
        with suppress(Corrupt):
            everything(Profiles.from_bytes(broken))


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


def test_a_column_that_one_side_lacks_is_missing_there() -> None:
    old = Profiles.of({"x": np.arange(4.0)})
    new = Profiles.of({"x": np.arange(6.0), "y": np.arange(6.0)}, like=old)
    for both in (old.merge(new), new.merge(old)):
        assert (both.whole.columns["y"].count, both.whole.columns["y"].missing) == (6, 4)
    later = Profiles.of({"x": np.arange(2.0), "y": np.arange(2.0)}, like=old.extended(new))
    orders = permutations([old, new, later])
    assert len({repr(exact(reduce(Profiles.merge, order).whole)) for order in orders}) == 1


def test_unlike_profiles_do_not_merge() -> None:
    with pytest.raises(Corrupt, match="edges"):
        Profile.of({"x": np.arange(9.0)}).merge(Profile.of({"x": np.arange(5.0)}))
    text = np.array(["a", "b"], dtype=object)
    with pytest.raises(Corrupt, match="edges"):
        Profile.of({"x": np.arange(2.0)}).merge(Profile.of({"x": text}))
    with pytest.raises(Corrupt, match="values"):
        Profile.of({"x": text}).merge(Profile.of({"x": text[:1]}))
