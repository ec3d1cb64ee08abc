"""The replica's counters as Prometheus text. Serve's own `ray_serve_*` names stay untouched."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_HELP = {
    "ct_requests_total": "HTTP requests by status code, and by arm and version where a model answered.",
    "ct_rows_total": "Predicted rows.",
    "ct_canary_failures_total": "Requests of the canary that stable had to answer.",
    "ct_shadow_dropped_total": "Rows that were not shadowed because the replica was busy.",
    "ct_labels_total": "Labels taken in.",
    "ct_observed_total": "New entries of the online store.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and one latency histogram a version, in seconds."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._times: dict[Labels, tuple[list[int], list[float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._counts[name, tuple(sorted(labels.items()))] += by  # type: ignore[assignment]

    def time(self, seconds: float, **labels: str) -> None:
        """Add a duration to the request histogram."""
        buckets, total = self._times.setdefault(tuple(sorted(labels.items())), ([0] * (len(BOUNDS) + 1), [0.0]))
        buckets[bisect_left(BOUNDS, seconds)] += 1
        total[0] += seconds

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything in Prometheus' text format, `gauges` included."""
        return "\n".join([*self._counters(), *self._histogram(), *_gauges(gauges)]) + "\n"

    def _counters(self) -> Iterator[str]:
        for name, help_text in _HELP.items():
            yield f"# HELP {name} {help_text}"
            yield f"# TYPE {name} counter"
            for (found, labels), value in sorted(self._counts.items()):
                if found == name:
                    yield f"{name}{_labels(labels)} {value:g}"

    def _histogram(self) -> Iterator[str]:
        name = "ct_request_duration_seconds"
        yield f"# HELP {name} Time from the request to its durable answer."
        yield f"# TYPE {name} histogram"
        for labels, (buckets, total) in sorted(self._times.items()):
            below = 0
            for bound, found in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
                below += found
                yield f"{name}_bucket{_labels((*labels, ('le', bound)))} {below}"
            yield f"{name}_sum{_labels(labels)} {total[0]:.6f}"
            yield f"{name}_count{_labels(labels)} {below}"


def _gauges(gauges: Mapping[str, float]) -> Iterator[str]:
    for name, value in gauges.items():
        yield f"# TYPE {name} gauge"
        yield f"{name} {value:g}"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
