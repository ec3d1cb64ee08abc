"""What one replica counts, and what it holds, as Prometheus samples. Only counting; nothing is decided by them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ct.features.online import Freshness
from ct.registry.routes import STABLE, WHOLE
from ct.serving.exposition import Sample, families, histogram
from ct.serving.slots import Live, Slots

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the latency histogram, seconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the batch histogram, rows."""
RETIRED = 16
"""So many versions that are loaded no more are still told of: time enough for a last scrape, and no scrape that grows for ever."""
REASONS = {408: "slow_sender", 413: "body", 429: "busy", 503: "unavailable", 504: "deadline"}
"""Why a request was turned away, by its code. A 503 of the outermost layer is "busy", one from within "unavailable"."""

FAMILIES = families(
    ("ct_replica_up", "gauge", "1 when this replica answered the scrape, 0 when Ray knows it and it did not."),
    ("ct_replica_info", "gauge", "The name by which the prediction log and ct status call this replica."),
    ("ct_replicas_least", "gauge", "How many replicas the settings ask for at least."),
    ("ct_ready", "gauge", "1 once a route is in force on this replica."),
    ("ct_http_responses_total", "counter", "HTTP answers of every door, by status code."),
    ("ct_requests_total", "counter", "Prediction requests by the arm and version that answered, and by status code."),
    ("ct_predictions_total", "counter", "Rows scored for answers, by arm and version."),
    ("ct_request_duration_seconds", "histogram", "Time from a parsed prediction request to its logged answer."),
    ("ct_fallbacks_total", "counter", "Requests of an arm that stable answered instead: it failed, or its circuit was open."),
    ("ct_rejected_total", "counter", "Requests turned away, by reason: body, busy, deadline, slow_sender, unavailable."),
    (
        "ct_http_inflight_requests",
        "gauge",
        "Requests with a body that this replica has in work; it turns away more than the setting max_in_work.",
    ),
    ("ct_inflight_requests", "gauge", "Prediction requests that are being scored, by version."),
    ("ct_batch_rows", "histogram", "Rows of each call of a model."),
    ("ct_shadow_dropped_total", "counter", "Shadow copies not scored because too many were waiting."),
    ("ct_log_rows_total", "counter", "Rows whose log record was durable when they were answered (logged), or not (unlogged)."),
    ("ct_labels_total", "counter", "Labels taken."),
    ("ct_faults_total", "counter", "What went wrong beside the requests, by kind of error."),
    ("ct_log_faults_total", "counter", "Times that the prediction log could not be written."),
    ("ct_routing_epoch", "gauge", "The epoch of the route in force; a spread over replicas is how far a change has come."),
    ("ct_rollout_weight", "gauge", "An arm's share of traffic in the route in force, 0 to 1."),
    ("ct_rollout_shadowed", "gauge", "1 when an arm also scores, unseen, what stable answers."),
    ("ct_circuit_open", "gauge", "1 when an arm failed so often that this replica gives its requests to stable."),
    (
        "ct_missing_versions",
        "gauge",
        "Candidates of the route in force that this replica could not load; stable has their requests.",
    ),
    (
        "ct_candidates_halted",
        "gauge",
        "1 while an order on the node's disk keeps the candidates out (ct rollout abort --offline).",
    ),
    ("ct_resident_versions", "gauge", "Versions loaded in this replica."),
    (
        "ct_resident_bytes",
        "gauge",
        "Memory that a loaded version takes, as measured when it was loaded, by the runtime that holds it.",
    ),
    ("ct_online_newest_timestamp_seconds", "gauge", "Event time of the newest row in the online store, by source."),
    ("ct_online_filled_timestamp_seconds", "gauge", "When the online store last took a row, by source."),
)


@dataclass(slots=True)
class _Served:
    """What one arm and version answered."""

    answered: int = 0
    failed: int = 0
    rows: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))


@dataclass
class Telemetry:
    """The counters of one endpoint on one replica. Each method costs about a microsecond. Called on the replica's event loop."""

    endpoint: str
    codes: Counter[int] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS.values(), 0)))
    faults: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    dropped: int = 0
    logged: int = 0
    unlogged: int = 0
    log_faults: int = 0
    in_work: Callable[[], int] = lambda: 0
    _served: dict[tuple[str, str], _Served] = field(default_factory=dict)
    _batches: list[int] = field(default_factory=lambda: [0] * (len(SIZES) + 1))
    _batched: int = 0

    def predicted(self, arm: str, version: str, rows: int, seconds: float, fell_back: str = "") -> None:
        """One answered prediction request; `fell_back` is the arm that should have answered and failed, or was out."""
        served = self._of(arm, version)
        served.answered += 1
        served.rows += rows
        served.seconds += seconds
        served.buckets[bisect_left(BOUNDS, seconds)] += 1
        if fell_back:
            self.fallbacks[fell_back] += 1

    def failed(self, arm: str, version: str) -> None:
        """A prediction request that no version could score."""
        self._of(arm, version).failed += 1

    def answered(self, code: int) -> None:
        """One HTTP answer."""
        self.codes[code] += 1
        if code in REASONS:
            self.rejections[REASONS[code]] += 1

    def limited(self, code: int) -> None:
        """One HTTP answer of the outermost layer, which turns away what is too much at once."""
        self.codes[code] += 1
        if code in REASONS:
            self.rejections["busy" if code == 503 else REASONS[code]] += 1

    def batched(self, rows: int) -> None:
        """One call of a model."""
        self._batches[bisect_left(SIZES, rows)] += 1
        self._batched += rows

    def kept(self, rows: int, *, durable: bool = True) -> None:
        """Rows answered; `durable` when their log record was on disk before the answer."""
        if durable:
            self.logged += rows
        else:
            self.unlogged += rows

    def log_fault(self, kind: str) -> None:
        """The prediction log could not be written."""
        self.log_faults += 1
        self.faults[kind] += 1

    def labelled(self, count: int) -> None:
        """Labels taken."""
        self.labels += count

    def shadow_dropped(self) -> None:
        """A shadow copy that was not scored because too many were waiting."""
        self.dropped += 1

    def fault(self, kind: str) -> None:
        """Something went wrong beside the requests."""
        self.faults[kind] += 1

    def _of(self, arm: str, version: str) -> _Served:
        found = self._served.get((arm, version))
        if found is None:
            found = self._served[arm, version] = _Served()
        return found

    def samples(self, slots: Slots, freshness: Sequence[Freshness] = ()) -> list[Sample]:
        """Every count, what is loaded and in force, and how new what the online store holds is. Labelled by endpoint, not yet by replica."""
        live = slots.live
        self._forget(slots)
        if live is not None:  # what will be counted is there from the start: Prometheus sees no increase from nothing to one
            for arm, slot in {STABLE: live.stable, **live.candidates}.items():
                self._of(arm, slot.predictor.version)
        made = [*self._counts(), *self._arms(), *self._held(slots), *self._route(slots, live)]
        for word, moment in (("newest", "newest"), ("filled", "stored")):
            for source in freshness:
                if (at := getattr(source, moment)) > 0:
                    made.append((f"ct_online_{word}_timestamp_seconds", {"source": source.title}, at / 1e6))
        return [(name, {"endpoint": self.endpoint, **labels}, value) for name, labels, value in made]

    def _forget(self, slots: Slots) -> None:
        gone = [key for key in self._served if key[1] not in slots.loaded]
        for key in gone[:-RETIRED]:
            del self._served[key]

    def _counts(self) -> list[Sample]:
        made: list[Sample] = [("ct_http_responses_total", {"code": str(code)}, n) for code, n in sorted(self.codes.items())]
        made += [("ct_fallbacks_total", {"arm": arm}, count) for arm, count in sorted(self.fallbacks.items())]
        made += [("ct_rejected_total", {"reason": reason}, count) for reason, count in sorted(self.rejections.items())]
        made += [("ct_faults_total", {"kind": kind}, count) for kind, count in sorted(self.faults.items())]
        made += [
            ("ct_log_rows_total", {"outcome": "logged"}, self.logged),
            ("ct_log_rows_total", {"outcome": "unlogged"}, self.unlogged),
        ]
        plain = {
            "ct_log_faults_total": self.log_faults,
            "ct_labels_total": self.labels,
            "ct_shadow_dropped_total": self.dropped,
            "ct_http_inflight_requests": self.in_work(),
        }
        made += [(name, {}, value) for name, value in plain.items()]
        return [*made, *histogram("ct_batch_rows", {}, SIZES, self._batches, self._batched)]

    def _arms(self) -> list[Sample]:
        made: list[Sample] = []
        for (arm, version), served in sorted(self._served.items()):
            labels = {"arm": arm, "version": version}
            made.append(("ct_requests_total", {**labels, "code": "200"}, served.answered))
            made.append(("ct_requests_total", {**labels, "code": "500"}, served.failed))
            made.append(("ct_predictions_total", labels, served.rows))
            made += histogram("ct_request_duration_seconds", labels, BOUNDS, served.buckets, served.seconds)
        return made

    def _held(self, slots: Slots) -> list[Sample]:
        loaded = sorted(slots.loaded.items())
        made: list[Sample] = [("ct_inflight_requests", {"version": version}, slot.in_flight) for version, slot in loaded]
        held = [({"version": version, "runtime": slot.predictor.runtime}, slot.size) for version, slot in loaded]
        made += [("ct_resident_bytes", labels, size) for labels, size in held]
        return [*made, ("ct_resident_versions", {}, len(loaded))]

    def _route(self, slots: Slots, live: Live | None) -> list[Sample]:
        made: list[Sample] = [
            ("ct_ready", {}, int(live is not None)),
            ("ct_routing_epoch", {}, live.route.epoch if live else 0),
        ]
        if live is None:
            return made
        decided, missing = slots.route or live.route, len(slots.missing)
        made.append(("ct_missing_versions", {}, missing))
        made.append(("ct_candidates_halted", {}, int(bool(decided.candidates) and not live.route.candidates and not missing)))
        versions = {STABLE: live.stable, **live.candidates}
        for arm, weight in live.route.shares.items():
            labels = {"arm": arm, "version": versions[arm].predictor.version}
            made.append(("ct_rollout_weight", labels, weight / WHOLE))
        for share, (arm, circuit) in zip(live.route.candidates, live.circuits.items(), strict=True):
            made.append(("ct_rollout_shadowed", {"arm": arm}, int(share.shadow)))
            made.append(("ct_circuit_open", {"arm": arm}, int(circuit.open and circuit.limit > 0)))
        return made
