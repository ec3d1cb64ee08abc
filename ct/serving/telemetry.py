"""Counts of one replica in the Prometheus text format. Only counting; nothing is decided by them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ct.features.online import Freshness

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass
class Telemetry:
    """The counters of one endpoint on one replica."""

    endpoint: str
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    canary_failures: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    labels: int = 0
    dropped: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    _buckets: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _seconds: Counter[tuple[str, str]] = field(default_factory=Counter)

    def predicted(self, arm: str, version: str, rows: int, seconds: float, failed: bool) -> None:
        """One answered prediction request; `failed` when the canary had failed before."""
        name = (arm, version)
        self.requests[name] += 1
        self.rows[name] += rows
        self.canary_failures += failed
        buckets = self._buckets.setdefault(name, [0] * (len(_BOUNDS) + 1))
        buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[name] += seconds  # type: ignore[assignment]

    def answered(self, code: int) -> None:
        """One HTTP answer."""
        self.codes[code] += 1

    def labelled(self, count: int) -> None:
        """Labels taken."""
        self.labels += count

    def shadow_dropped(self) -> None:
        """A shadow copy that was not scored because too many were waiting."""
        self.dropped += 1

    def fault(self, kind: str) -> None:
        """Something went wrong beside the requests."""
        self.faults[kind] += 1

    def text(
        self, *, epoch: int, weight: int, in_flight: dict[str, int], circuit_open: bool, freshness: Sequence[Freshness] = ()
    ) -> str:
        """All counters, in the Prometheus text format."""
        where = f'endpoint="{self.endpoint}"'
        lines = ["# TYPE ct_http_responses_total counter"]
        lines += [f'ct_http_responses_total{{{where},code="{code}"}} {count}' for code, count in sorted(self.codes.items())]
        lines.append("# TYPE ct_requests_total counter")
        for (arm, version), count in sorted(self.requests.items()):
            lines.append(f'ct_requests_total{{{where},arm="{arm}",version="{version}"}} {count}')
        lines.append("# TYPE ct_predictions_total counter")
        for (arm, version), count in sorted(self.rows.items()):
            lines.append(f'ct_predictions_total{{{where},arm="{arm}",version="{version}"}} {count}')
        lines.append("# TYPE ct_request_duration_seconds histogram")
        for name, buckets in sorted(self._buckets.items()):
            lines += self._histogram(where, name, buckets)
        lines.append("# TYPE ct_faults_total counter")
        lines += [f'ct_faults_total{{{where},kind="{kind}"}} {count}' for kind, count in sorted(self.faults.items())]
        plain = {
            "ct_canary_failures_total": ("counter", self.canary_failures),
            "ct_labels_total": ("counter", self.labels),
            "ct_shadow_dropped_total": ("counter", self.dropped),
            "ct_routing_epoch": ("gauge", epoch),
            "ct_rollout_weight": ("gauge", weight),
            "ct_circuit_open": ("gauge", int(circuit_open)),
        }
        for metric, (kind, value) in plain.items():
            lines += [f"# TYPE {metric} {kind}", f"{metric}{{{where}}} {value}"]
        lines.append("# TYPE ct_inflight_requests gauge")
        lines += [f'ct_inflight_requests{{{where},version="{name}"}} {count}' for name, count in sorted(in_flight.items())]
        for word, moment in (("newest", "newest"), ("filled", "stored")):
            lines.append(f"# TYPE ct_online_{word}_timestamp_seconds gauge")
            for source in freshness:
                if (at := getattr(source, moment)) > 0:
                    lines.append(f'ct_online_{word}_timestamp_seconds{{{where},source="{source.title}"}} {at / 1e6:.6f}')
        return "\n".join(lines) + "\n"

    def _histogram(self, where: str, name: tuple[str, str], buckets: list[int]) -> list[str]:
        tags, total, lines = f'{where},arm="{name[0]}",version="{name[1]}"', 0, []
        for bound, count in zip((*_BOUNDS, "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'ct_request_duration_seconds_bucket{{{tags},le="{bound}"}} {total}')
        lines.append(f"ct_request_duration_seconds_sum{{{tags}}} {self._seconds[name]:.6f}")
        lines.append(f"ct_request_duration_seconds_count{{{tags}}} {total}")
        return lines
