"""Labels are read strictly and joined once each, whatever the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data.labels import arrays, join, read_labels
from ct.data.predictions import PredictionIds
from ct.errors import InvalidRequest
from ct.objectives import BINARY, Objective

IDS = PredictionIds("ab" * 16)
NOW = 1_700_000_000_000_000


def read(*entries: Any) -> list[dict[str, Any]]:
    return read_labels(list(entries), ids=IDS, objective=BINARY, above=15.0, now_us=NOW)


def test_values_become_truths() -> None:
    name = IDS.new()
    found = read(
        {"prediction_id": name, "value": 15.0, "known_at": "2013-04-01T10:00:00Z"},
        {"prediction_id": name, "value": 16},
        {"prediction_id": name, "label": 1},
        {"prediction_id": name, "value": None},
    )
    assert [record["label"] for record in found] == [0.0, 1.0, 1.0, None]
    assert [record["known_at"] for record in found] == [1_364_810_400_000_000, NOW, NOW, NOW]


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"prediction_id": "p-" + "a" * 26}, 404, "prediction_id"),
        ({"value": "late"}, 422, "0.value"),
        ({"value": True}, 422, "0.value"),
        ({"label": 1}, 422, "0.value"),
        ({"known_at": "2013-04-01T10:00:00"}, 422, "0.known_at"),
        ({"known_at": "2033-04-01T10:00:00Z"}, 422, "0.known_at"),
        ({"known_at": 7}, 422, "0.known_at"),
        ({"surprise": 1}, 422, "0"),
    ],
)
def test_wrong_labels_are_refused_whole(change: dict[str, Any], status: int, field: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        read({"prediction_id": IDS.new(), "value": 1.0} | change)
    assert (found.value.status, found.value.field) == (status, field)


@pytest.mark.parametrize("posted", [None, [], "labels", {}, 7])
def test_what_is_no_list_is_refused(posted: Any) -> None:
    with pytest.raises(InvalidRequest):
        read_labels(posted, ids=IDS, objective=BINARY, above=15.0, now_us=NOW)


def test_a_label_of_half_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="0 or 1"):
        read({"prediction_id": IDS.new(), "label": 0.5})


CLASSES = Objective("classes", ("late", "on time"))
NUMBER, QUANTILES = Objective("number"), Objective("quantiles", quantiles=(0.1, 0.9))


def one(objective: Objective, **entry: Any) -> dict[str, Any]:
    (found,) = read_labels([{"prediction_id": IDS.new(), **entry}], ids=IDS, objective=objective, above=None, now_us=NOW)
    return found


def test_truths_of_every_kind() -> None:
    for field in ("value", "label"):
        assert (one(CLASSES, **{field: "on time"})["label"], one(CLASSES, **{field: None})["label"]) == (1.0, None)
        for objective in (NUMBER, QUANTILES):
            found = one(objective, **{field: -3})
            assert (found["value"], found["label"]) == (-3.0, -3.0)


@pytest.mark.parametrize(
    ("objective", "said", "expected"),
    [
        (CLASSES, "cancelled", "one of ['late', 'on time']"),
        (CLASSES, 1, "one of ['late', 'on time']"),
        (CLASSES, True, "one of ['late', 'on time']"),
        (NUMBER, "late", "a finite number"),
        (NUMBER, float("inf"), "a finite number"),
        (QUANTILES, [1.0], "a finite number"),
    ],
)
def test_a_truth_of_another_kind_is_refused(objective: Objective, said: Any, expected: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        one(objective, value=said)
    assert found.value.expected.startswith(expected)
    assert found.value.field == "0.value"


def test_rows_as_arrays_and_those_of_another_label_are_missing() -> None:
    records = [
        scored("a", scores={"late": 0.3, "on time": 0.7}),
        scored("b", scores={"early": 1.0}),
        scored("old"),
        told("a", 1.0, 10),
    ]
    scores, truth = arrays(join(records).rows, CLASSES)
    np.testing.assert_array_equal(scores, [[0.3, 0.7], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(truth, [1.0, np.nan, np.nan])
    scores, _ = arrays(join(records).rows, NUMBER)
    np.testing.assert_array_equal(scores, [0.5, 0.5, 0.5])
    assert arrays((), CLASSES)[0].shape == (0, 2)


def scored(name: str, **changes: Any) -> dict[str, Any]:
    base = {"kind": "prediction", "id": name, "version": "v1", "arm": "stable", "epoch": 1, "score": 0.5}
    return base | {"t": 1, "event_time": 0, "context": {}} | changes


def told(name: str, label: float | None, known_at: int, t: int = 5) -> dict[str, Any]:
    return {"kind": "label", "id": name, "value": None, "label": label, "known_at": known_at, "t": t}


RECORDS = [
    scored("a"),
    scored("b"),
    scored("c"),
    scored("d", score=None),
    scored("b.shadow", kind="shadow", of="b", version="v2"),
    told("a", 1.0, 10),
    told("a", 1.0, 10, t=6),
    told("b", 0.0, 10),
    told("b", 1.0, 12),
    told("x", 1.0, 10),
]


@given(st.permutations(RECORDS))
def test_join_does_not_depend_on_the_order(records: list[dict[str, Any]]) -> None:
    found = join([*records, records[0]] if records[0]["kind"] != "label" else records)
    assert {row.id: row.label for row in found.rows} == {"a": 1.0, "b": 1.0, "c": None}
    assert [(row.version, row.label) for row in found.shadow] == [("v2", 1.0)]
    assert (found.duplicates, found.contradictions, found.parked) == (1, 1, 1)
