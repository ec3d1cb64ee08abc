"""How many replicas an autoscaled endpoint wants. Serve asks in its controller and applies bounds and delays itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

IN_WORK = "in_work"
"""What each replica tells beside Serve's own count: its requests in work, also those that came by `direct_port`, which Serve does not see."""


def by_work(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many replicas that each has the target of requests in work, by the larger of the two counts. Both are means over the look-back period."""
    told = (context.aggregated_metrics or {}).get(IN_WORK, {})
    work = max(sum(told.values()), float(context.total_num_requests))
    config: Any = context.config
    return work / config.target_ongoing_requests, {}
