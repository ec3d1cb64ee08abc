"""A user's own metrics: the same function for the gate, for each slice, over time and wherever else it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ct.evaluation.paired import Floats, Own
from ct.roles import Columns, Metric


def function_of(metric: Any) -> Own:
    """A metric as a function of scores, labels and columns."""
    found: Own = metric.value if isinstance(metric, Metric) else metric
    return found


def values(metrics: Mapping[str, Any], scores: Floats, labels: Floats, columns: Columns) -> tuple[dict[str, float], list[str]]:
    """{name: value} of a user's metrics, and what went wrong: one that raises, or gives no finite number, has no value."""
    found, faults = {}, []
    for name, metric in metrics.items():
        try:
            value = float(function_of(metric)(scores, labels, columns))
        except Exception as error:  # a user's function may raise anything; the gate says so and does not pass
            faults.append(f"metric {name!r} raised {type(error).__name__}: {error}")
            continue
        if math.isfinite(value):
            found[name] = value
        else:
            faults.append(f"metric {name!r} gave {value}")
    return found, faults
