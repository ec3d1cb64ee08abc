"""A pipeline's selectors narrow the rows that train, and never those that judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ct
from ct.control import rows as running
from ct.control.act import Actor
from ct.control.place import Place
from ct.errors import InvalidPipeline, TrainingFailed
from tests.control import shop


@pytest.fixture
def act(tmp_path: Path) -> Actor:
    act = shop.opened(tmp_path / "shop")
    shop.land(act, 1, 2, 3, n=600)
    return act


def rows(act: Actor, *selectors: object) -> running.Rows:
    line = shop.pipeline().replace(rows=list(selectors), holdout="5d")
    here = Place(line, act.settings, act.journal, act.artifacts)
    return running.rows(here, shop.run(act), on_step=lambda _: None)


def test_the_newest_rows_and_a_share_of_older_ones_train(act: Actor) -> None:
    every = rows(act)
    data = rows(act, ct.newest("7d", older=0.1, by="city"))
    assert data.digest == every.digest, "the feature set is the same: it is chosen from, not made anew"
    assert (data.split.judge == every.split.judge).all()
    assert (data.split.train <= every.split.train).all()
    city = data.segments["city"]
    price = data.columns["price"]
    older = every.split.train & np.r_[np.ones(1200, dtype=bool), np.zeros(600, dtype=bool)]
    for town in ("Oslo", "Rome"):
        stratum = older & (city == town)
        assert (data.split.train & stratum).sum() == round(0.1 * stratum.sum())
    assert (data.split.train & ~older).sum() == (every.split.train & ~older).sum() > 0
    again = rows(act, ct.newest("7d", older=0.1, by="city"))
    assert (again.split.train == data.split.train).all()
    assert len(np.unique(price[data.split.train])) > 50
    assert data.selection == {
        "rule": "the last 7d and 0.1 of older rows by city",
        "of": int(every.split.train.sum()),
        "rows": int(data.split.train.sum()),
    }
    assert every.selection == {}


def test_shards_and_segments_choose_and_all_must_agree(act: Actor) -> None:
    every = rows(act)
    assert rows(act, ct.tagged(source="parquet")).split.train.sum() == every.split.train.sum()
    oslo = rows(act, ct.only(city="Oslo"), ct.newest("60d"))
    assert set(oslo.segments["city"][oslo.split.train]) == {"Oslo"}
    assert set(oslo.segments["city"][oslo.split.judge]) == {"Oslo", "Rome"}
    with pytest.raises(TrainingFailed, match="0 rows to train on"):
        rows(act, ct.tagged(source="csv"))


def test_a_pipeline_says_what_is_wrong_with_its_selectors() -> None:
    line = shop.pipeline()
    with pytest.raises(InvalidPipeline, match=r"rows reads \['carrier'\], which is not in segments"):
        line.replace(rows=ct.only(carrier="AA"))
    with pytest.raises(InvalidPipeline, match="rows holds 'newest'"):
        line.replace(rows="newest")
    chosen = line.replace(rows=ct.newest("7d"))
    assert chosen.fingerprint() != line.fingerprint()
    assert chosen.feature_fingerprint() == line.feature_fingerprint()
