"""What users' tests need: the turnable clock, a journal in a folder, and contracts that a user's own part can be checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ct.clock import TurnableClock
from ct.control.triggers import Observed
from ct.data.past import Before
from ct.ids import fingerprint, sha256_file
from ct.roles import Check, Columns, Cursor, Past, Source, Weighed, Weigher
from ct.store.journal import Journal

__all__ = ["Before", "TurnableClock", "check_contract", "journal", "source_contract", "trigger_contract", "weigher_contract"]


def journal(folder: Path) -> Journal:
    """A journal on SQLite in `folder`."""
    return Journal(f"sqlite:///{folder / 'journal.db'}", actor="test")


def check_contract(check: Check, rows: Columns, past: Past | None = None) -> None:
    """Assert that `check` behaves as a check must on `rows`: one truth value a row or one for the shard, the rows untouched, twice the same answer.

    `past` is what it may know of earlier shards: `Before(now, shards)`; without it there are none.
    """
    assert isinstance(check, Check), f"{check!r} lacks a method of ct.roles.Check"
    count = len(next(iter(rows.values())))
    past = past or Before()
    before = {name: values.copy() for name, values in rows.items()}
    first, second = check.violations(rows, past), check.violations(rows, past)
    assert first.shape in ((count,), ()), f"violations() gave shape {first.shape}, expected ({count},) or ()"
    assert first.dtype == np.bool_, f"violations() gave {first.dtype}, expected bool"
    assert np.array_equal(first, second), "violations() gave two answers for the same rows"
    assert all(_same(before[name], rows[name]) for name in before), "violations() changed its input"
    assert check.explain().strip(), "explain() is empty"
    assert 0.0 <= check.limit() < 1.0, f"limit() is {check.limit()}, expected a share in [0, 1)"


def trigger_contract(trigger: object) -> None:
    """Assert that `trigger` behaves as a trigger must: a text for any observation, the same one each time."""
    decide = getattr(trigger, "decide", None)
    assert callable(decide), f"{trigger!r} lacks decide(observed)"
    for observed in (Observed(), Observed(new_rows=10**9, drifted=("a", "b"))):
        first, second = decide(observed), decide(observed)
        assert isinstance(first, str), f"decide() gave {type(first).__name__}, expected a text"
        assert first == second, "decide() gave two answers for the same observation"


def weigher_contract(weigher: Weigher, rows: Weighed) -> None:
    """Assert that `weigher` behaves as a weigher must on `rows`: a finite weight of at least 0 for each, the same ones in another order,
    the rows untouched. `rows` must hold the segments that it names.
    """
    assert isinstance(weigher, Weigher), f"{weigher!r} lacks a method of ct.roles.Weigher"
    assert fingerprint(weigher) == fingerprint(weigher)
    assert weigher.explain().strip(), "explain() is empty"
    assert all(isinstance(name, str) for name in weigher.segments()), "segments() gives something else than names"
    count = len(rows.label)
    turned = np.random.default_rng(1).permutation(count)
    first, second = np.asarray(weigher.weights(rows)), np.asarray(weigher.weights(_taken(rows, np.arange(count))))
    assert first.shape == (count,), f"weights() gave shape {first.shape}, expected ({count},)"
    assert first.dtype.kind in "fiu", f"weights() gave {first.dtype}, expected numbers"
    assert np.isfinite(first).all(), "weights() gave what is no number"
    assert (first >= 0).all(), "weights() gave a number below 0"
    assert np.array_equal(first, second), "weights() gave two answers for the same rows"
    moved = np.asarray(weigher.weights(_taken(rows, turned)))
    assert np.array_equal(first[turned], moved), "weights() gave other weights for the same rows in another order"


def _taken(rows: Weighed, places: np.ndarray) -> Weighed:
    return replace(
        rows,
        times=rows.times[places],
        keys=rows.keys[places],
        segments={name: values[places] for name, values in rows.segments.items()},
        features={name: values[places] for name, values in rows.features.items()},
        label=rows.label[places],
        scores=None if rows.scores is None else rows.scores[places],
    )


def source_contract(source: Source, arrive: Callable[[], None], folder: Path) -> None:
    """Assert that `source` behaves as a source must: each thing that `arrive` makes arrive is pending until it is taken, and not again.

    Looking twice says the same, fetching twice gives the same bytes, a name is a plain file name. Files are fetched below `folder`, an
    existing empty one.
    """
    assert isinstance(source, Source), f"{source!r} lacks a method of ct.roles.Source"
    assert fingerprint(source) == fingerprint(source)
    assert source.explain().strip(), "explain() is empty"
    now = Cursor(folder, sha256_file)
    for turn in range(3):
        arrive()
        found = source.pending(now)
        assert len(found) == 1, f"pending() gave {len(found)} arrivals for one thing that arrived"
        assert found == source.pending(now), "pending() gave two answers where nothing changed"
        (item,) = found
        assert item.name == Path(item.name).name, f"{item.name!r} is no plain file name"
        assert not item.name.startswith("."), f"{item.name!r} is hidden"
        assert item.key or item.after == now.position, f"{item.name} follows {item.after!r}, not the cursor's {now.position!r}"
        files = []
        for attempt in ("first", "second"):
            place = folder / f"{turn}-{attempt}"
            place.mkdir()
            files.append(source.fetch(item, now, place))
        one, two = map(sha256_file, files)
        assert one == two, "fetch() gave other bytes the second time"
        moved = (
            {"taken": {**now.taken, item.key: item.position}}
            if item.key
            else {"position": item.position, "started": item.position}
        )
        now = replace(now, seen=now.seen | {one}, **moved)
        assert source.pending(now) == (), "pending() gave what was taken already"


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype.kind == "f":
        return np.array_equal(left, right, equal_nan=True)
    return bool(np.all(left == right))
