"""The Prometheus text format: what is written is read back by another parser as it was, whatever the labels hold."""

from __future__ import annotations

import math
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ct.errors import InvalidRequest
from ct.serving import exposition, scrape
from ct.serving.exposition import Sample, families, histogram
from ct.serving.telemetry import BOUNDS, FAMILIES, SIZES, Telemetry

KNOWN = families(
    ("ct_things_total", "counter", 'Things, with "quotes", a \\ and\na second line.'),
    ("ct_level", "gauge", "A level."),
    ("ct_wait_seconds", "histogram", "A wait."),
)
LABEL = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e"), max_size=20
)


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.dictionaries(LABEL, st.floats(allow_nan=False), max_size=5))
def test_any_label_is_read_back_as_it_was(values: dict[str, float]) -> None:
    samples: list[Sample] = [("ct_level", {"name": label, "other": '"\\\n'}, value) for label, value in values.items()]
    found = read(exposition.text(KNOWN, samples)).get("ct_level", {})
    assert found == {(("name", label), ("other", '"\\\n')): value for label, value in values.items()}


def test_every_family_says_what_it_is_even_without_samples() -> None:
    told = {
        family.name: (family.type, family.documentation)
        for family in text_string_to_metric_families(exposition.text(KNOWN, []))
    }
    assert told == {
        "ct_things": ("counter", 'Things, with "quotes", a \\ and\na second line.'),
        "ct_level": ("gauge", "A level."),
        "ct_wait_seconds": ("histogram", "A wait."),
    }


def test_a_histogram_is_cumulative_and_ends_in_infinity() -> None:
    found = read(exposition.text(KNOWN, histogram("ct_wait_seconds", {"arm": "a"}, (0.1, 1.0), [2, 0, 3], 7.5)))
    assert found["ct_wait_seconds_bucket"] == {
        (("arm", "a"), ("le", "0.1")): 2,
        (("arm", "a"), ("le", "1")): 2,
        (("arm", "a"), ("le", "+Inf")): 5,
    }
    assert found["ct_wait_seconds_count"] == {(("arm", "a"),): 5}
    assert found["ct_wait_seconds_sum"] == {(("arm", "a"),): 7.5}


def test_what_prometheus_would_refuse_is_refused_here() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        exposition.text(KNOWN, [("ct_level", {"a": "x"}, 1), ("ct_level", {"a": "x"}, 2)])
    for name in ("ct_unknown", "ct_wait_seconds", "ct_level_bucket"):
        with pytest.raises(InvalidRequest, match=name):
            exposition.text(KNOWN, [(name, {}, 1)])


def test_values_keep_their_digits() -> None:
    values = (0.0, 3, 1e15, 1714550400.123456, 1 / 3, math.inf, -math.inf, 1e300)
    samples: list[Sample] = [("ct_level", {"at": str(at)}, value) for at, value in enumerate(values)]
    assert tuple(read(exposition.text(KNOWN, samples))["ct_level"].values()) == values
    assert "NaN" in exposition.text(KNOWN, [("ct_level", {}, math.nan)])


def counted() -> Telemetry:
    made = Telemetry("tiny")
    for at in range(10):
        made.predicted("stable", "v1", 2, 0.003 * at, "canary" if at == 9 else "")
    made.failed("stable", "v1")
    for code in (200, 413, 503):
        made.answered(code)
    made.limited(503)
    made.batched(7)
    made.kept(20)
    made.kept(3, durable=False)
    made.log_fault("Unavailable")
    return made


def test_what_is_counted_is_told() -> None:
    text = scrape.text(
        "tiny", {"r1": counted().samples(SimpleNamespace(live=None, loaded={}, missing=(), route=None)), "r2": None}, 2
    )  # type: ignore[arg-type]
    found = {
        name: {dict(labels).get("code") or dict(labels).get("reason") or "": value for labels, value in told.items()}
        for name, told in read(text).items()
    }
    assert found["ct_requests_total"] == {"200": 10, "500": 1}
    assert found["ct_http_responses_total"] == {"200": 1, "413": 1, "503": 2}
    assert found["ct_rejected_total"] == {"body": 1, "busy": 1, "unavailable": 1, "deadline": 0, "slow_sender": 0}
    assert found["ct_predictions_total"] == {"": 20}
    assert found["ct_fallbacks_total"] == {"": 1}
    assert found["ct_log_faults_total"] == {"": 1}
    assert sorted(value for value in read(text)["ct_log_rows_total"].values()) == [3, 20]
    assert list(read(text)["ct_replica_up"].items()) == [
        ((("endpoint", "tiny"), ("replica", "r1")), 1),
        ((("endpoint", "tiny"), ("replica", "r2")), 0),
    ]
    assert found["ct_replicas_least"] == {"": 2}
    assert len(read(text)["ct_request_duration_seconds_bucket"]) == len(BOUNDS) + 1
    assert len(read(text)["ct_batch_rows_bucket"]) == len(SIZES) + 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_no_fault_with_any_family() -> None:
    from ct.control.exposed import FAMILIES as CONTROL

    for known in (FAMILIES, CONTROL):
        samples: list[Sample] = []
        for name, family in known.items():
            labels = {"endpoint": 'e"\\'}
            samples += histogram(name, labels, (1.0,), [1, 1], 3.0) if family.kind == "histogram" else [(name, labels, 1)]
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=exposition.text(known, samples), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
