"""Personal columns at the endpoint: hashed as ingest hashes them, and the raw value nowhere afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pyarrow as pa
import pytest
from tiny import FEATURES, ROW, Project

from ct.data import personal, predictions
from ct.errors import InvalidRequest, InvalidSettings
from ct.serving.replica import Replica
from ct.serving.veil import veiled

KEY = "5a" * 32
RAW = "bus-of-jane-doe"
PERSONAL = {"trips": {"bus": "keyed", "email": "dropped"}}
SENT = {**ROW, "bus": RAW, "email": "jane@example.org"}
PUSHED = {**SENT, "leaves": "2024-05-01T07:00:00Z", "late": 6.0, "arrives": "2024-05-01T08:00:00Z"}


def asked(project: Project, *rows: dict[str, Any], pushed: list[dict[str, Any]] | None = None) -> Replica:
    replica = Replica(project.settings, "tiny")

    async def go() -> None:
        if pushed:
            await replica.observe("trips", pushed)
        await replica.predict(list(rows))

    asyncio.run(go())
    return replica


def test_the_raw_value_is_nowhere_and_rows_of_one_person_still_meet(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CT_PERSONAL_KEY", KEY)
    project.first(personal=PERSONAL)
    asked(project, SENT, pushed=[PUSHED])
    (record,) = predictions.read(project.settings.inbox)[0]
    (hashed,) = personal.keyed("bus").veil([RAW], bytes.fromhex(KEY)) or ()
    assert record["request"]["bus"] == hashed
    assert "email" not in record["request"]
    assert record["features"][FEATURES[2].outputs()[0].name] == 6.0, "the pushed row was found by its hash"
    held = [path for path in project.settings.home.rglob("*") if path.is_file()]
    assert any(path.parent == project.settings.inbox for path in held)
    for path in held:
        data = path.read_bytes()
        assert RAW.encode() not in data, path
        assert b"jane@" not in data, path


def test_without_the_secret_such_a_version_is_not_served(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CT_PERSONAL_KEY", raising=False)
    project.first(personal=PERSONAL)
    with pytest.raises(InvalidSettings, match="no secret"):
        Replica(project.settings, "tiny")


def test_a_wrong_value_is_refused_without_being_repeated(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CT_PERSONAL_KEY", KEY)
    project.first(personal=PERSONAL)
    with pytest.raises(InvalidRequest) as caught:
        asked(project, {**SENT, "bus": [RAW]})
    assert caught.value.field == "0.bus"
    assert RAW not in json.dumps(caught.value.as_dict())


@pytest.mark.parametrize("value", [12345, 0, 1.5, 12345.0, "12345", "é"])
def test_a_value_has_one_hash_at_ingest_and_at_the_endpoint(value: Any) -> None:
    key = bytes.fromhex(KEY)
    stored = personal.veiled(pa.table({"id": pa.array([value])}), [personal.keyed("id")], key)["id"].to_pylist()
    assert [row["id"] for row in veiled([{"id": value}], {"id": "keyed"}, key)] == stored


def test_missing_stays_missing_and_parts_of_your_own_take_no_value() -> None:
    assert veiled([{"id": None}, {}], {"id": "keyed"}, b"k" * 32) == [{"id": None}, {}]
    with pytest.raises(InvalidRequest, match="a part of your own"):
        veiled([{"id": "x"}], {"id": "own"}, b"")
