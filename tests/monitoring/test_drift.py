"""Drift: silent on equal samples of any size, silent below its floor however many rows, loud above it."""

import numpy as np
import pytest

from ct.data.profile import Profile, Profiles
from ct.errors import InvalidSettings
from ct.ids import canonical, describe
from ct.monitoring.drift import FeatureDrift, SlicedDrift, compare, compare_slices

SIZES = [(100, 100), (200, 200), (1000, 200), (300, 3000), (30_000, 300), (3000, 3000), (30_000, 30_000)]


def columns(rng: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Shapes that tests stumble on: skewed, mostly zero, two-valued, many rare values, missing values, a constant."""
    zipf = np.minimum(rng.zipf(1.5, n), 500)
    carrier = np.array(["UA", "B6", "EV", "DL"], dtype=object)
    gaps = rng.normal(shift, 1, n)
    gaps[rng.random(n) < 0.2] = np.nan
    return {
        "normal": rng.normal(shift, 1, n),
        "skewed": rng.lognormal(shift, 1.0, n),
        "mostly_zero": np.where(rng.random(n) < 0.9, 0.0, rng.exponential(1, n)),
        "flag": (rng.random(n) < 0.3).astype(float),
        "gaps": gaps,
        "constant": np.full(n, 7.0),
        "carrier": rng.choice(carrier, n, p=[0.4, 0.3, 0.2, 0.1]),
        "dest": np.array([f"d{v}" for v in zipf], dtype=object),
    }


def against(before: dict[str, np.ndarray], now: dict[str, np.ndarray], **options: float) -> dict[str, FeatureDrift]:
    reference = Profile.of(before)
    return {row.column: row for row in compare(reference, Profile.of(now, like=reference), **options)}


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_equal_samples_do_not_drift(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    rounds = 100 if max(n, m) < 10_000 else 10
    alarms, effects = 0, []
    for _ in range(rounds):
        found = against(columns(rng, n), columns(rng, m))
        alarms += any(row.drifted for row in found.values())
        effects.append([row.effect for row in found.values()])
    assert alarms / rounds <= 0.01  # alpha, for any find among eight columns
    assert np.mean(effects) < 0.06  # the noise is taken off: at 100 rows the raw distance is about 0.2


@pytest.mark.parametrize(
    ("n", "m", "values"), [(300, 300, 100), (2000, 2000, 200), (1000, 30_000, 200), (10_000, 10_000, 1500)]
)
def test_values_that_are_many_and_equally_frequent_do_not_drift(n: int, m: int, values: int) -> None:
    """Which of them have a bin of their own is chance, and may not look like drift."""
    rng = np.random.default_rng(n)
    names = np.array([f"tail{i}" for i in range(values)], dtype=object)
    found = [against({"c": rng.choice(names, n)}, {"c": rng.choice(names, m)})["c"] for _ in range(20)]
    assert not any(row.drifted for row in found)
    assert np.mean([row.effect for row in found]) < 0.06


@pytest.mark.parametrize(("n", "m"), [(200, 200), (5000, 500), (20_000, 20_000)])
def test_the_share_of_false_alarms_at_the_floor_itself_stays_near_alpha(n: int, m: int) -> None:
    """The hardest place: the true distance is the floor. Flags with shares 0.3 and q so that sqrt(sum (p-q)^2/(p+q)/2) = 0.1."""
    rng, q = np.random.default_rng(3), 0.39524
    p = 0.3
    assert np.sqrt(((p - q) ** 2 / (p + q) + (p - q) ** 2 / (2 - p - q)) / 2) == pytest.approx(0.1, abs=5e-4)
    rounds = 1000 if n < 10_000 else 200
    alarms = 0
    for _ in range(rounds):
        before, now = (rng.random(n) < p).astype(float), (rng.random(m) < q).astype(float)
        alarms += against({"flag": before}, {"flag": now}, alpha=0.05)["flag"].drifted
    assert alarms / rounds <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / rounds)


def test_a_small_move_of_many_rows_is_no_drift() -> None:
    rng = np.random.default_rng(4)
    found = against({"x": rng.normal(0, 1, 500_000)}, {"x": rng.normal(0.1, 1, 500_000)})["x"]
    assert not found.drifted
    assert found.effect == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("shift", "n", "power"), [(1.0, 100, 0.8), (0.5, 1000, 0.99), (0.4, 3000, 0.99), (0.3, 30_000, 0.99)])
def test_a_move_above_the_floor_is_found(shift: float, n: int, power: float) -> None:
    rng = np.random.default_rng(5)
    found = [against(columns(rng, n), columns(rng, n, shift)) for _ in range(10)]
    assert np.mean([rows["normal"].drifted for rows in found]) >= power
    assert not any(rows["carrier"].drifted or rows["constant"].drifted for rows in found)
    assert np.mean([rows["normal"].effect for rows in found]) == pytest.approx(shift / 2, rel=0.2)


def test_categories_move_and_new_ones_appear() -> None:
    rng = np.random.default_rng(6)
    before = {"c": rng.choice(np.array(["a", "b"], dtype=object), 2000)}
    moved = against(before, {"c": rng.choice(np.array(["a", "b"], dtype=object), 500, p=[0.2, 0.8])})["c"]
    assert (moved.drifted, moved.kind) == (True, "category")
    assert "→" in moved.note
    new = against(before, {"c": rng.choice(np.array(["a", "b", "new"], dtype=object), 500, p=[0.4, 0.4, 0.2])})["c"]
    assert new.drifted
    assert "other values 0.0% →" in new.note


def test_missing_values_are_drift_of_their_own() -> None:
    rng = np.random.default_rng(7)
    now = rng.normal(size=1000)
    now[:300] = np.nan
    found = against({"x": rng.normal(size=1000)}, {"x": now})["x"]
    assert found.drifted
    assert (found.missing_before, found.missing_now) == (0.0, 0.3)
    assert "missing 0.0% → 30.0%" in found.note


def test_missing_texts_are_no_rare_value() -> None:
    """Beside many rare values: what was "other" before is missing now."""
    rng = np.random.default_rng(17)
    before = np.array([f"d{v}" for v in rng.integers(0, 600, 5000)], dtype=object)
    now = np.where(rng.random(5000) < 0.15, None, rng.permutation(before))
    found = against({"c": before}, {"c": now})["c"]
    assert found.drifted
    assert found.missing_now == pytest.approx(0.15, abs=0.02)


def test_a_constant_that_moves_is_found() -> None:
    assert against({"x": np.full(100, 5.0)}, {"x": np.full(100, 3.0)})["x"].effect > 0.9
    assert not against({"x": np.full(100, 5.0)}, {"x": np.full(100, 5.0)})["x"].drifted


def test_what_cannot_be_compared_says_so_and_everything_is_plain_data() -> None:
    rng = np.random.default_rng(8)
    reference = Profile.of(columns(rng, 500))
    for current in (Profile.of(columns(rng, 0), like=reference), Profile.of(columns(rng, 500))):
        found = compare(reference, current)
        assert not any(row.drifted for row in found if row.note.startswith("not compared"))
        assert canonical(describe(found))
    assert compare(reference, Profile.of({}, like=reference)) == ()
    few = {row.column: row for row in compare(reference, Profile.of(columns(rng, 3), like=reference))}
    assert few["normal"].note.startswith("not compared: too few rows")


def test_millions_of_rows_have_a_finite_p_value() -> None:
    data = Profile.of({"x": np.arange(1000.0)})
    big = Profile(10**9, {"x": Profile.of({"x": np.arange(1000.0)}, like=data).columns["x"]})
    for _ in range(20):
        big = big.merge(big)
    (row,) = compare(big, big)
    assert (row.p_value, row.drifted) == (1.0, False)


def test_floor_and_alpha_are_checked() -> None:
    with pytest.raises(InvalidSettings, match="floor"):
        compare(Profile.of({}), Profile.of({}), floor=0.0)


def sliced(rng: np.random.Generator, n: int, shift: float = 0.0, places: int = 8) -> dict[str, np.ndarray]:
    """The columns above, and a place, the last of which holds a hundredth of the rows; `shift` moves the numbers of "p0" alone."""
    still, moved = columns(rng, n), columns(rng, n, shift)
    place = rng.choice(places, n, p=[*[0.99 / (places - 1)] * (places - 1), 0.01])
    rows = {name: np.where(place == 0, moved[name], still[name]) for name in still}
    return rows | {"place": np.array([f"p{v}" for v in place], dtype=object)}


def by_place(before: dict[str, np.ndarray], now: dict[str, np.ndarray], **options: float) -> SlicedDrift:
    reference = Profiles.of(before, ["place"])
    return compare_slices(reference, Profiles.of(now, ["place"], like=reference), **options)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (20_000, 800), (20_000, 20_000)])
def test_equal_slices_do_not_drift(n: int, m: int) -> None:
    rng = np.random.default_rng(n + m)
    rounds = 60 if n < 10_000 else 10
    found = [by_place(sliced(rng, n), sliced(rng, m)) for _ in range(rounds)]
    assert (
        sum(bool(drift.worst()) for drift in found) / rounds <= 0.02
    )  # alpha, for any find among 72 pairs of slice and column


def test_one_column_of_one_slice_that_moves_is_found_and_no_other() -> None:
    rng = np.random.default_rng(11)
    found = by_place(sliced(rng, 20_000), sliced(rng, 20_000, shift=1.0))
    worst = found.worst()
    assert {row.slice_value for row in worst} == {"p0"}
    assert {row.feature.column for row in worst} == {"normal", "skewed", "gaps"}
    assert [row.feature.effect for row in worst] == sorted((row.feature.effect for row in worst), reverse=True)
    normal = next(row for row in worst if row.feature.column == "normal")
    assert normal.feature.effect == pytest.approx(0.5, rel=0.2)
    assert "sd)" in normal.feature.note
    assert (normal.slice_column, normal.rows_before > 2000, normal.rows_now > 2000) == ("place", True, True)
    assert len(found.worst(2)) == 2
    assert canonical(describe(worst))


def test_a_slice_is_compared_as_a_profile_of_its_own_is() -> None:
    rng = np.random.default_rng(12)
    reference = Profiles.of(sliced(rng, 5000), ["place"])
    current = Profiles.of(sliced(rng, 5000, shift=0.5), ["place"], like=reference)
    found = compare_slices(Profiles.from_bytes(reference.to_bytes()), Profiles.from_bytes(current.to_bytes()))
    for row, label in enumerate(found.slices):
        before, now = reference.slice(*label), current.slice(*label)
        assert before is not None
        assert now is not None
        for one in compare(before, now):
            column = found.columns.index(one.column)
            if found.compared[row, column] and one.kind == "number":
                assert found.effect[row, column] == pytest.approx(one.effect, abs=1e-12)
                assert found.p_value[row, column] == pytest.approx(one.p_value, abs=1e-12)


def test_slices_that_come_and_go_are_named_and_not_compared() -> None:
    rng = np.random.default_rng(13)
    before, now = sliced(rng, 2000), sliced(rng, 2000)
    before["place"][before["place"] == "p3"] = "p2"
    now["place"][now["place"] == "p5"] = "p4"
    found = by_place(before, now)
    assert (found.gone, found.new) == ((("place", "p5"),), (("place", "p3"),))
    assert not {label for label in found.slices if label[1] in ("p3", "p5")}


def test_columns_on_other_bins_and_profiles_without_slices_give_no_finds() -> None:
    rng = np.random.default_rng(14)
    reference, strange = Profiles.of(sliced(rng, 2000), ["place"]), Profiles.of(sliced(rng, 2000, shift=3.0), ["place"])
    found = compare_slices(reference, strange)
    assert not found.compared[:, found.columns.index("normal")].any()
    assert not any(row.feature.column == "normal" for row in found.worst())
    nothing = compare_slices(Profiles.single(reference.whole), reference)
    assert (nothing.slices, nothing.worst()) == ((), ())
    with pytest.raises(InvalidSettings, match="alpha"):
        compare_slices(reference, reference, alpha=2.0)
