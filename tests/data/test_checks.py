"""Checks: what breaks each kind beyond its example, what is said of it, and what follows by severity. See also tests/contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ct
from ct.data.checks import Findings, run
from ct.data.columns import NO_TIME, Rows
from ct.data.hashing import row_hash
from ct.data.past import Before
from ct.data.rules import unique
from ct.errors import InvalidPipeline
from ct.roles import Check, Columns

DAY = 86_400_000_000
NOTHING = Before()


def text(*values: str | None) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def judge(check: Check, rows: Columns, before: Before = NOTHING, **more: object) -> Findings:
    return run([check], rows, before, **more)[0]  # type: ignore[arg-type]


def half(rows: Columns) -> np.ndarray:
    return np.asarray(rows["a"] > 0)


def all_there(rows: Columns) -> bool:
    return len(rows["a"]) > 2


A = text("x", "x", "y", None)
CASES: list[tuple[Check, Columns, Before, list[bool]]] = [
    (ct.NotNull("a", "b"), {"a": text("x", None, "y"), "b": np.array([1.0, 2.0, np.nan])}, NOTHING, [False, True, True]),
    (ct.NotNull("t"), {"t": np.array([NO_TIME, 0])}, NOTHING, [True, False]),
    (ct.Within("a", 0, 1), {"a": np.array([-0.1, 0.0, 1.0, 1.1, np.nan, np.inf])}, NOTHING, [True, False, False, True, False, True]),
    (ct.Within("a", 0, np.inf), {"a": np.array([np.inf, 5.0])}, NOTHING, [True, False]),
    (ct.OneOf("a", ["x", "y"]), {"a": text("x", "z", None)}, NOTHING, [False, True, False]),
    (ct.Unique("a", "b"), {"a": text("x", "x", "y"), "b": np.array([1.0, 1.0, 1.0])}, NOTHING, [True, True, False]),
    (ct.Unique("a"), {"a": text("x", "y")}, Before(shards=({"a": text("y", "z")},)), [False, True]),
    (ct.Unique("a"), {"a": text("x", "y")}, Before(shards=({"a": text("y")}, {"a": text("z")})), [False, True]),
    (ct.Unique("a", shards=1), {"a": text("x", "y")}, Before(shards=({"a": text("y")}, {"a": text("z")})), [False, False]),
    (ct.Unique("a"), {"a": A}, NOTHING, [True, True, False, False]),
    (ct.KeepLast("a", by="t"), {"a": A, "t": np.array([5, 1, 1, 1])}, NOTHING, [False, True, False, False]),
    (ct.KeepLast("a", by="t"), {"a": A, "t": np.array([3, 3, 1, 1])}, NOTHING, [True, False, False, False]),
    (ct.Fresh("t", within="2d"), {"t": np.array([8, 9, 11, 12, 7]) * DAY}, Before(10 * DAY), [False, False, False, True, True]),
    (ct.Compare("a", "<", "b"), {"a": text("x", "z", None), "b": text("y", "y", "y")}, NOTHING, [False, True, False]),
    (ct.Compare("a", "<=", "b"), {"a": np.array([1, NO_TIME, 3]), "b": np.array([1, 1, 1])}, NOTHING, [False, False, True]),
    (ct.Rule(half, "a"), {"a": np.array([1.0, -1.0])}, NOTHING, [False, True]),
]  # fmt: skip


@pytest.mark.parametrize(("check", "rows", "before", "broken"), CASES)
def test_a_check_marks_the_rows_that_break_it(check: Check, rows: Columns, before: Before, broken: list[bool]) -> None:
    np.testing.assert_array_equal(check.violations(rows, before), broken)


WHOLE: list[tuple[Check, Columns, Before, str]] = [
    (ct.RowCount(5), {"a": np.zeros(3)}, NOTHING, "3 rows; expected 5 to"),
    (ct.RowCount(factor=2), {"a": np.zeros(3)}, Before(shards=({"a": np.zeros(10)}, {"a": np.zeros(9)})), "3 rows; expected 5"),
    (ct.RowCount(factor=2), {"a": np.zeros(30)}, Before(shards=({"a": np.zeros(10)},)), "30 rows"),
    (ct.RowCount(factor=2), {"a": np.zeros(30)}, NOTHING, ""),
    (ct.Varied("a"), {"a": np.full(100, 3.0)}, NOTHING, "a has the same value"),
    (ct.Varied("a", "b"), {"a": np.arange(100.0), "b": np.full(100, np.nan)}, NOTHING, "b has the same value"),
    (ct.Varied("a"), {"a": np.full(99, 3.0)}, NOTHING, ""),
    (ct.Present("a"), {"a": text(*["x"] * 200)}, Before(shards=({"a": text("x", "y")},)), "no row with a y"),
    (ct.Present("a"), {"a": text(*["x"] * 199)}, Before(shards=({"a": text("x", "y")},)), ""),
    (ct.Present("a"), {"a": text(*["x"] * 200)}, Before(shards=({"a": text(*["x"] * 20, "y")},)), ""),
    (ct.Rule(all_there, "a"), {"a": np.zeros(2)}, NOTHING, "all there(a)"),
]


@pytest.mark.parametrize(("check", "rows", "before", "says"), WHOLE)
def test_a_rule_on_the_shard_as_a_whole(check: Check, rows: Columns, before: Before, says: str) -> None:
    assert check.violations(rows, before).shape == ()
    found = judge(check, rows, before).refused
    assert [says in reason.found for reason in found] == ([True] if says else [])


@pytest.mark.parametrize("factor", [1000, 0.001])
def test_a_unit_that_changed_for_all_rows_is_caught(factor: float) -> None:
    usual = np.random.default_rng(0).normal(1500, 200, 1000)
    before = Before(shards=({"a": usual},))
    assert not judge(ct.Usual("a"), {"a": usual + 100}, before).refused
    assert judge(ct.Usual("a"), {"a": usual * factor}, before).refused
    rain = np.where(np.arange(1000) % 20, 0.0, np.arange(1000) / 100)
    assert not judge(ct.Usual("a"), {"a": rain}, Before(shards=({"a": rain},))).refused
    assert not judge(ct.Usual("a"), {"a": usual}, Before(shards=({"a": np.full(9, 5.0)},))).refused


def test_a_share_of_the_rows_may_break_a_check() -> None:
    rows = {"a": np.array([1.0] * 99 + [np.nan])}
    assert not judge(ct.NotNull("a", share=0.01), rows).refused
    assert judge(ct.NotNull("a", share=0.009), rows).refused


def test_a_unit_that_changed_for_one_group_is_caught_and_the_group_is_named() -> None:
    carrier = text(*(["AA", "B6", "UA"] * 100))
    known = {"carrier": carrier, "distance": np.tile([100.0, 200.0, 300.0], 100)}
    rows = {"carrier": carrier, "distance": np.tile([100.0, 200.0 * 1.609, 300.0], 100)}
    before = Before(shards=(known,))
    assert not judge(ct.Steady("distance", by="carrier"), known, before).refused
    (reason,) = judge(ct.Steady("distance", by="carrier"), rows, before).refused
    assert reason.rows == 100
    assert "carrier B6" in reason.found


def test_steady_has_nothing_to_say_of_first_shards_new_groups_and_missing_values() -> None:
    rows = {"carrier": text("AA", "XX", "AA"), "distance": np.array([100.0, 5.0, np.nan])}
    before = Before(shards=({"carrier": text("AA", None), "distance": np.array([100.0, np.nan])},))
    assert not judge(ct.Steady("distance", by="carrier"), rows).refused
    assert not judge(ct.Steady("distance", by="carrier"), rows, before).refused


GROUPED = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1.0, 2.0, np.nan]), st.sampled_from([1.0, 1.5, 9.0, np.nan])), min_size=1, max_size=12)  # fmt: skip


@given(GROUPED, GROUPED)
def test_steady_is_what_a_loop_would_find(before: list[tuple[str, float, float]], now: list[tuple[str, float, float]]) -> None:
    def columns(rows: list[tuple[str, float, float]]) -> Columns:
        return {"g": text(*(r[0] for r in rows)), "n": np.array([r[1] for r in rows]), "v": np.array([r[2] for r in rows])}

    expected = []
    for group, number, value in now:
        same = [v for g, n, v in before if g == group and (n == number or (n != n and number != number)) and v == v]
        usual = np.median(same) if same else np.nan
        expected.append(bool(abs(value - usual) > 0.1 * abs(usual)))
    check = ct.Steady("v", by=("g", "n"))
    np.testing.assert_array_equal(check.violations(columns(now), Before(shards=(columns(before),))), expected)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([1.0, 2.0])), max_size=12), st.lists(st.sampled_from("abcd")))
def test_unique_is_what_a_loop_would_find(keys: list[tuple[str, float]], earlier: list[str]) -> None:
    rows = {"k": text(*(key for key, _ in keys)), "n": np.array([number for _, number in keys])}
    before = Before(shards=({"k": text(*earlier), "n": np.ones(len(earlier))},))
    expected = [keys.count(key) > 1 or (key[0] in earlier and key[1] == 1.0) for key in keys]
    np.testing.assert_array_equal(ct.Unique("k", "n").violations(rows, before), expected)


def test_two_keys_with_one_hash_are_two_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "row_hash", lambda rows, names: np.zeros(len(rows[names[0]]), dtype=np.int64))
    before = Before(shards=({"a": text("z", "y")},))
    np.testing.assert_array_equal(ct.Unique("a").violations({"a": text("x", "y", "w")}, before), [False, True, False])


@given(st.lists(st.text(max_size=20) | st.none(), max_size=40))
def test_a_column_hashes_the_same_in_every_form(values: list[str | None]) -> None:
    plain = row_hash({"a": text(*values)}, ["a"]) if values else np.empty(0, dtype=np.int64)
    for column in (pa.chunked_array([pa.array(values[:7], pa.string()), pa.array(values[7:], pa.string())]),
                   pa.array(values, pa.string()).dictionary_encode()):  # fmt: skip
        np.testing.assert_array_equal(row_hash(Rows(pa.table({"a": column})), ["a"]), plain)


def test_the_days_of_the_broken_rows_and_what_they_lack_are_named() -> None:
    rows = {
        "other": np.arange(30) * DAY + 500 * DAY,
        "at": np.arange(30) * DAY,
        "origin": text(*([None if 9 <= i < 12 else "JFK" for i in range(30)])),
    }
    (reason,) = judge(ct.NotNull("origin"), rows, time="at").refused
    assert "origin missing in 3" in reason.found
    assert "from 1970-01-10 to 1970-01-12" in reason.found


def test_hidden_columns_are_never_quoted() -> None:
    rows = {"id": text("bob", "bob", "ann"), "n": np.array([-1.0, -1.0, 5.0])}
    for check in (ct.Unique("id"), ct.Within("n", 0, 9), ct.Compare("id", "==", "id2")):
        found = judge(check, {**rows, "id2": text("x", "x", "x")}, hidden=["id"])
        (reason,) = found.refused
        assert "bob" not in str(reason)
        assert reason.examples[0].startswith("row 0")


@given(st.lists(st.integers(-(2**62), 2**62) | st.just(NO_TIME), min_size=1, max_size=5))
def test_a_reason_can_be_told_of_any_time(times: list[int]) -> None:
    rows = {"at": np.array(times, dtype=np.int64), "a": np.full(len(times), np.nan)}
    (reason,) = judge(ct.NotNull("a", "at"), rows, time="at").refused
    assert reason.rows == len(times)


def test_rows_are_set_aside_first_and_the_others_judged_without_them() -> None:
    rows = {"id": text("a", "b", "b", "c"), "n": np.array([1.0, -5.0, 2.0, 3.0])}
    found, left = run([ct.Unique("id"), ct.quarantine(ct.Within("n", 0, 9), up_to=0.25)], rows, NOTHING)
    assert not found.refused
    assert list(found.rows_aside) == [False, True, False, False]
    assert list(left["id"]) == ["a", "b", "c"]
    assert found.causes[1] == "n in [0, 9]"


def test_too_many_rows_to_set_aside_refuse_the_shard() -> None:
    rows = {"n": np.array([1.0, -5.0, -2.0, 3.0])}
    assert judge(ct.quarantine(ct.Within("n", 0, 9), up_to=0.4), rows).refused
    assert not judge(ct.quarantine(ct.Within("n", 0, 9), up_to=0.5), rows).refused


def throws(rows: Columns) -> Iterator[bool]:
    raise ZeroDivisionError


def test_a_check_that_cannot_run_is_the_pipelines_fault() -> None:
    with pytest.raises(InvalidPipeline, match="TypeError"):
        judge(ct.Within("a", 0, 1), {"a": text("x")})
    with pytest.raises(InvalidPipeline, match="ZeroDivisionError"):
        judge(ct.Rule(throws, "a"), {"a": text("x")})
    with pytest.raises(InvalidPipeline, match="shape"):
        judge(ct.Rule(lambda rows: np.ones(3, dtype=bool), "a"), {"a": text("x")})
    with pytest.raises(InvalidPipeline, match="different kinds"):
        judge(ct.Compare("a", "<", "b"), {"a": text("x"), "b": np.array([1.0])})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ct.NotNull(),
        lambda: ct.Unique(),
        lambda: ct.Unique("a", shards=-1),
        lambda: ct.Varied(),
        lambda: ct.Within("a", 2, 1),
        lambda: ct.Steady("a", by="b", within=0),
        lambda: ct.NotNull("a", share=1.5),
        lambda: ct.RowCount(5, 4),
        lambda: ct.RowCount(factor=1),
        lambda: ct.Fresh("t", within="soon"),
        lambda: ct.Compare("a", "~", "b"),
        lambda: ct.Usual("a", times=0),
        lambda: ct.Present("a", least=0),
        lambda: ct.Rule("a"),
        lambda: ct.quarantine(ct.NotNull("a"), up_to=0),
    ],
)
def test_wrong_declarations_are_refused(wrong: Callable[[], Check]) -> None:
    with pytest.raises(InvalidPipeline):
        wrong()


@pytest.mark.parametrize("check", [ct.Usual("k"), ct.Present("x")])
def test_a_check_on_another_kind_of_column_does_not_pass_in_silence(check: Check) -> None:
    rows = {"k": text(*["a"] * 300), "x": np.zeros(300)}
    with pytest.raises(InvalidPipeline, match="a check that fits the column's type"):
        judge(check, rows, Before(shards=(rows,)))


def test_a_reason_can_be_printed_whatever_the_rows_hold() -> None:
    rows = {"x": np.array([0.0] * 9 + [7.0]), "k": text(*["a"] * 9, "\x1b[31mred\n")}
    (reason,) = judge(ct.Within("x", 0, 1), rows).refused
    assert "?[31mred?" in reason.found
    assert reason.found.isprintable()
