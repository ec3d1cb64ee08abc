"""How many replicas the load wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ct.serving.scaling import IN_WORK, by_work


@pytest.mark.parametrize(
    ("seen", "told", "wanted"),
    [
        (0.0, None, 0.0),
        (32.0, {}, 2.0),
        (0.0, {IN_WORK: {"a": 20.0, "b": 28.0}}, 3.0),
        (64.0, {IN_WORK: {"a": 20.0, "b": 28.0}}, 4.0),
        (8.0, {IN_WORK: {"a": 4.0}}, 0.5),
    ],
)
def test_the_larger_count_decides(seen: float, told: Any, wanted: float) -> None:
    context: Any = SimpleNamespace(
        total_num_requests=seen, aggregated_metrics=told, config=SimpleNamespace(target_ongoing_requests=16)
    )
    assert by_work(context) == (wanted, {})
