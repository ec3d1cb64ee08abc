"""Checks: what breaks them, what they say of it, and that they stay pure and stable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct import NotNull, OneOf, Steady, Unique, Within
from ct.data.checks import run
from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.ids import fingerprint
from ct.roles import Check, Columns

DAY = 86_400_000_000


def text(*values: str | None) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


@pytest.mark.parametrize(
    ("check", "rows", "broken"),
    [
        (NotNull("a", "b"), {"a": text("x", None, "y"), "b": np.array([1.0, 2.0, np.nan])}, [False, True, True]),
        (NotNull("t"), {"t": np.array([NO_TIME, 0])}, [True, False]),
        (Within("a", 0, 1), {"a": np.array([-0.1, 0.0, 1.0, 1.1, np.nan, np.inf])}, [True, False, False, True, False, True]),
        (OneOf("a", ["x", "y"]), {"a": text("x", "z", None)}, [False, True, False]),
        (Unique("a", "b"), {"a": text("x", "x", "y"), "b": np.array([1.0, 1.0, 1.0])}, [True, True, False]),
    ],
)
def test_a_check_marks_the_rows_that_break_it(check: Check, rows: Columns, broken: list[bool]) -> None:
    np.testing.assert_array_equal(check.violations(rows, None), broken)
    (reason,) = run([check], rows, None)
    assert reason.rows == sum(broken)
    assert reason.examples


def test_unique_looks_at_the_newest_shard_too() -> None:
    rows, past = {"a": text("x", "y")}, {"a": text("y", "z")}
    np.testing.assert_array_equal(Unique("a").violations(rows, past), [False, True])


def test_a_share_of_the_rows_may_break_a_check() -> None:
    rows = {"a": np.array([1.0] * 99 + [np.nan])}
    assert not run([NotNull("a", share=0.01)], rows, None)
    assert run([NotNull("a", share=0.009)], rows, None)


def test_a_unit_that_changed_for_one_group_is_caught_and_the_group_is_named() -> None:
    carrier = text(*(["AA", "B6", "UA"] * 100))
    past = {"carrier": carrier, "distance": np.tile([100.0, 200.0, 300.0], 100)}
    rows = {"carrier": carrier, "distance": np.tile([100.0, 200.0 * 1.609, 300.0], 100)}
    assert not run([Steady("distance", by="carrier")], past, past)
    (reason,) = run([Steady("distance", by="carrier")], rows, past)
    assert reason.rows == 100
    assert "carrier B6" in reason.found


def test_steady_has_nothing_to_say_of_first_shards_new_groups_and_missing_values() -> None:
    rows = {"carrier": text("AA", "XX", "AA"), "distance": np.array([100.0, 5.0, np.nan])}
    past = {"carrier": text("AA", None), "distance": np.array([100.0, np.nan])}
    assert not run([Steady("distance", by="carrier")], rows, None)
    assert not run([Steady("distance", by="carrier")], rows, past)


def test_the_days_of_the_broken_rows_and_what_they_lack_are_named() -> None:
    rows = {
        "other": np.arange(30) * DAY + 500 * DAY,
        "at": np.arange(30) * DAY,
        "origin": text(*([None if 9 <= i < 12 else "JFK" for i in range(30)])),
    }
    (reason,) = run([NotNull("origin")], rows, None, time="at")
    assert "origin missing in 3" in reason.found
    assert "from 1970-01-10 to 1970-01-12" in reason.found


@given(st.lists(st.integers(-(2**62), 2**62) | st.just(NO_TIME), min_size=1, max_size=5))
def test_a_reason_can_be_told_of_any_time(times: list[int]) -> None:
    rows = {"at": np.array(times, dtype=np.int64), "a": np.full(len(times), np.nan)}
    (reason,) = run([NotNull("a", "at")], rows, None, time="at")
    assert reason.rows == len(times)


def test_a_check_that_cannot_run_is_the_pipelines_fault() -> None:
    with pytest.raises(InvalidPipeline, match="TypeError"):
        run([Within("a", 0, 1)], {"a": text("x")}, None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NotNull(),
        lambda: Unique(),
        lambda: Within("a", 2, 1),
        lambda: Steady("a", by="b", within=0),
        lambda: NotNull("a", share=1.5),
    ],
)
def test_wrong_declarations_are_refused(wrong: Callable[[], Check]) -> None:
    with pytest.raises(InvalidPipeline):
        wrong()


def test_equal_declarations_have_equal_fingerprints() -> None:
    def declared() -> list[Check]:
        return [NotNull("a", "b"), Within("a", 0, 1), OneOf("a", ["x"]), Unique("a"), Steady("a", by=("b", "c"))]

    assert fingerprint(declared()) == fingerprint(declared())
    assert fingerprint(NotNull("a")) != fingerprint(NotNull("a", share=0.1))
    assert all(isinstance(check, Check) for check in declared())
