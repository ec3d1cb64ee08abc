"""Selectors of training rows: which rows, how many, and that neither order nor division changes the choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data.slices import chosen, newest, only, tagged
from ct.errors import InvalidPipeline
from ct.roles import Offered

DAY = 86_400_000_000
TAGS = [
    {"source": "csv", "slices": {"carrier": {"AA": 2}}, "freshness": 3_600_000_000, "good": True, "batch": 1},
    {"source": "parquet", "slices": {"carrier": {"AA": 1, "B6": 1}}, "freshness": 2 * DAY, "good": False, "batch": 2},
]


def offered(days: list[int], carriers: list[str | None], seed: int = 0) -> Offered:
    n = len(days)
    keys = np.random.default_rng(seed).permutation(n).astype(np.int64) * 7919 - n
    return Offered(
        times=np.array(days, dtype=np.int64) * DAY,
        keys=keys,
        segments={"carrier": np.array([*carriers, None], dtype=object)[:-1]},
        shards=np.arange(n) % 2,
        tags=TAGS,
    )


def reordered(rows: Offered, order: np.ndarray) -> Offered:
    return replace(
        rows,
        times=rows.times[order],
        keys=rows.keys[order],
        segments={name: values[order] for name, values in rows.segments.items()},
        shards=rows.shards[order],
    )


rows_of = st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["AA", "B6", None])), max_size=120)


@given(rows_of, st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.25, 0.5]), st.randoms(use_true_random=False))
def test_newest_takes_the_span_and_an_exact_share_of_each_stratum(rows, seed, older, random) -> None:
    table = offered([day for day, _ in rows], [carrier for _, carrier in rows], seed)
    selector = newest("90d", older=older, by="carrier")
    mask = selector.chosen(table)
    last = max((day for day, _ in rows), default=0)
    recent = np.array([day > last - 90 for day, _ in rows], dtype=bool)
    assert mask[recent].all()
    for carrier in ("AA", "B6", None):
        stratum = ~recent & np.array([value is carrier for value in table.segments["carrier"]], dtype=bool)
        assert mask[stratum].sum() == int(older * stratum.sum() + 0.5)
        if 0 < mask[stratum].sum() < stratum.sum():
            assert table.keys[stratum & mask].max() < table.keys[stratum & ~mask].min()
    order = np.arange(len(rows))
    random.shuffle(order)
    assert (selector.chosen(reordered(table, order)) == mask[order]).all()


@given(rows_of, st.sampled_from([0.1, 0.5]))
def test_a_larger_share_keeps_the_rows_of_a_smaller_one(rows, share) -> None:
    table = offered([day for day, _ in rows], [carrier for _, carrier in rows])
    small = newest("30d", older=share).chosen(table)
    large = newest("30d", older=share + 0.3).chosen(table)
    assert (small <= large).all()


def test_rows_of_one_key_and_time_go_together() -> None:
    table = replace(offered([0] * 10 + [99], ["AA"] * 11), keys=np.array([5] * 6 + [9] * 4 + [0], dtype=np.int64))
    assert newest("1d", older=0.2).chosen(table).tolist() == [True] * 6 + [False] * 4 + [True]


def test_tags_choose_whole_shards() -> None:
    table = offered([1, 2, 3, 4], ["AA", "B6", "AA", None])
    assert tagged(source="parquet").chosen(table).tolist() == [False, True, False, True]
    assert tagged(source=["csv", "parquet"]).chosen(table).all()
    assert tagged(carrier="B6").chosen(table).tolist() == [False, True, False, True]
    assert tagged(carrier="B6", good=True).chosen(table).sum() == 0
    assert tagged(freshness="6h").chosen(table).tolist() == [True, False, True, False]
    assert tagged(batch=True).chosen(table).sum() == 0, "the number 1 is not the truth value"
    assert tagged(unheard="of").chosen(table).sum() == 0


def test_segments_choose_rows_and_missing_is_a_value() -> None:
    table = offered([1, 2, 3, 4], ["AA", "B6", "AA", None])
    assert only(carrier="AA").chosen(table).tolist() == [True, False, True, False]
    assert only(carrier=["B6", None]).chosen(table).tolist() == [False, True, False, True]


def test_several_selectors_must_agree() -> None:
    table = offered([1, 2, 3, 4], ["AA", "B6", "AA", None])
    mask = chosen((newest("2d"), tagged(source="csv")), table)
    assert mask.tolist() == [False, False, True, False]
    assert chosen((), table).all()


def test_a_selector_that_gives_no_mask_is_refused() -> None:
    class Wrong:
        def segments(self) -> tuple[str, ...]:
            return ()

        def chosen(self, rows: Offered) -> np.ndarray:
            return rows.times

        def explain(self) -> str:
            return "wrong"

    with pytest.raises(InvalidPipeline, match=r"gives int64 of shape \(2,\)"):
        chosen((Wrong(),), offered([1, 2], ["AA", "B6"]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: newest("soon"),
        lambda: newest("1d", older=1.0),
        lambda: newest("1d", older=-0.1),
        tagged,
        only,
        lambda: tagged(freshness="soon"),
    ],
)
def test_nonsense_is_refused_where_it_is_written(wrong) -> None:
    with pytest.raises(InvalidPipeline):
        wrong()


def test_no_rows_give_an_empty_mask() -> None:
    empty = replace(offered([], []), tags=[])
    for selector in (newest("1d", older=0.5, by="carrier"), tagged(source="csv"), only(carrier="AA")):
        assert selector.chosen(empty).shape == (0,)


def test_each_says_what_it_chooses() -> None:
    assert newest("90d", older=0.1, by="carrier").explain() == "the last 90d and 0.1 of older rows by carrier"
    assert tagged(source=["csv", "parquet"]).explain() == "shards with source 'csv' or 'parquet'"
    assert only(carrier="AA").explain() == "rows with carrier 'AA'"


@given(rows_of, st.integers(1, 60))
def test_a_number_of_older_rows_is_a_replay_of_about_so_many(rows, wanted) -> None:
    table = offered([day for day, _ in rows], [carrier for _, carrier in rows])
    mask = newest("90d", older=wanted, by="carrier").chosen(table)
    last = max((day for day, _ in rows), default=0)
    old = np.array([day <= last - 90 for day, _ in rows], dtype=bool)
    assert mask[~old].all()
    assert abs(mask[old].sum() - min(wanted, old.sum())) <= 1.5, "half a row for each of three strata"
    assert "older rows by carrier" in newest("90d", older=20_000, by="carrier").explain()


@pytest.mark.parametrize("older", [-1, 1.5, True, "1", 2.0])
def test_what_is_neither_a_share_nor_a_number_is_refused(older) -> None:
    with pytest.raises(InvalidPipeline, match="or a number of rows"):
        newest("90d", older=older)
