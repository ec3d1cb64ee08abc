"""The tally: the same records give the same counts, in any order, any split, and however often they are read."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ct.rollout.tally import Tally
from ct.rollout.verdict import Cell


def prediction(key: str, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "prediction", "id": key, "epoch": 5, "weight": 1000, "assigned": "stable", "error": "", "latency_ms": 5.0, "score": 0.2, **changed,
    }  # fmt: skip


def label(key: str, value: float) -> dict[str, Any]:
    return {"kind": "label", "id": key, "label": value}


def test_counts_by_weight_and_assigned_arm() -> None:
    tally = Tally(first_epoch=5, slow_ms=10.0)
    tally.add(
        [
            prediction("a"),
            prediction("b", assigned="canary", latency_ms=11.0),
            prediction("c", assigned="canary", error="boom"),
            prediction("old", epoch=4),
            prediction("forced", forced=True, assigned="canary"),
            label("a", 1.0),
            label("b", 0.0),
            label("c", 1.0),
            label("unknown", 1.0),
        ]
    )
    assert tally.cells() == (
        Cell(weight=0.1, arm="canary", total=2, errors=1, slow=1, labelled=1, wrong=0),
        Cell(weight=0.1, arm="stable", total=1, errors=0, slow=0, labelled=1, wrong=1),
    )


@given(st.permutations(range(12)), st.integers(0, 12))
def test_order_split_and_repetition_do_not_matter(order: list[int], cut: int) -> None:
    records = [prediction(str(n), assigned="canary" if n % 2 else "stable", score=n / 6) for n in range(6)]
    records += [label(str(n), float(n % 3 == 0)) for n in range(6)]
    straight, shuffled = Tally(5, 10.0), Tally(5, 10.0)
    straight.add(records)
    mixed = [records[at] for at in order]
    shuffled.add(mixed[:cut])
    shuffled.add(mixed[cut:])
    shuffled.add(mixed)
    assert shuffled.cells() == straight.cells()
