"""What a person asks of features: fill the store, compare with the shards, read the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ct.cli import app
from ct.control import runs
from ct.data.profile import Profile
from tests.control.test_skew import HOUR, START, WINDOW, World, text, trips

PIPELINE = """
import ct

trips = ct.Table("trips", key="trip", time="leaves")

@ct.feature("line")
def line_length(line):
    "Letters of the line's name."
    return [float("nan") if value is None else len(value) for value in line]

pipeline = ct.Pipeline(
    name="tiny",
    owner="ops",
    table=trips,
    label=ct.Label("late", above=15.0, known_at="arrives"),
    features=[
        ct.numeric("distance"),
        ct.category("line"),
        ct.about(
            ct.window(trips, "late", by="bus", over="7d", agg="mean", known_at="arrives"), owner="fleet", description="how late the bus is"
        ),
        line_length,
    ],
    model=ct.Torch(ct.models.MLP),
    gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.60)]),
    rollout=ct.Canary(100),
)
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    return World(tmp_path)


def ran(world: World, *args: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*args, "--root", str(world.place.settings.root)])
    assert done.exit_code == code, done.output
    return done


def told(world: World, *args: str, code: int = 0) -> Any:
    return json.loads(ran(world, *args, "--json", code=code).stdout)


def test_materialize_fills_the_store_and_says_how_fresh_it_is(world: World) -> None:
    rows = trips()
    world.publish(rows)
    ran(world, "materialize", "--dry-run")
    found = told(world, "materialize")
    assert found["stored"] == len(rows)
    (source,) = found["sources"]
    assert (source["table"], source["by"], source["rows"], source["entities"]) == ("trips", ["bus"], 24, 3)
    assert source["newest"] == text(rows[-1]["arrives"])
    assert told(world, "materialize")["stored"] == 0
    assert "24" in ran(world, "materialize").stdout


def test_since_reaches_further_back_than_the_newest_shard(world: World) -> None:
    old = [
        {**row, "trip": f"o{row['trip']}", "leaves": row["leaves"] - 240 * HOUR, "arrives": row["arrives"] - 240 * HOUR}
        for row in trips()
    ]
    world.publish(old, "april")
    world.publish(trips(), "may")
    assert told(world, "materialize")["stored"] == 24, "a week before May nothing happened"
    day = text(START - 240 * HOUR)[:10]
    assert told(world, "materialize", "--since", day)["stored"] == 24
    assert "no zone" in ran(world, "materialize", "--since", "2024-05-01T10:00", code=1).output
    assert "no time" in ran(world, "materialize", "--since", "yesterday", code=1).output


def test_skew_speaks_json_and_ends_with_2_when_features_differ(world: World) -> None:
    rows = trips()
    world.live(rows, push=lambda row: {**row, "late": row["late"] + 50.0})
    world.publish(rows)
    found = told(world, "skew", code=2)
    assert (found["predictions"], found["compared"], found["skewed"]) == (24, 24, [WINDOW])
    by_name = {item["feature"]: item for item in found["features"]}
    assert by_name["distance"]["equal"] == 24
    assert by_name[WINDOW]["examples"][0]["gap"] == pytest.approx(50.0)
    assert by_name[WINDOW]["examples"][0]["prediction"].startswith("p-")
    assert WINDOW[:8] in ran(world, "skew", "--last", "5", code=2).stdout


def test_the_catalogue_names_owner_reads_versions_and_profile(world: World) -> None:
    inputs = {
        "shards": {"trips": ["a", "b"]},
        "snapshots": {},
        "until": START,
        "params": {},
        "seed": 0,
        "code": "",
        "pipeline": "",
    }
    run = runs.start(world.place.journal, "tiny", cause="test", inputs=inputs)
    profile = Profile.of({WINDOW: np.array([1.0, 2.0, np.nan, 6.0]), "line": np.array(["A", "A", "B", None], dtype=object)})
    facts = {"profile": world.place.artifacts.put(profile.to_bytes()), "features": "f" * 64}
    runs.registered(world.place.journal, "tiny", run.id, version="v1", facts=facts)

    every = {item["name"]: item for item in told(world, "features")}
    assert list(every) == ["distance", "line", WINDOW, "line_length"]
    assert (every["distance"]["owner"], every[WINDOW]["owner"]) == ("ops", "fleet")
    assert every["line_length"]["description"] == "Letters of the line's name."
    assert every["line_length"]["versions"] == []
    assert [item["version"] for item in every["line"]["versions"]] == ["v1"]

    one = told(world, "features", WINDOW)
    assert one["reads"] == {"trips": ["bus", "late", "arrives", "trip"]}
    assert one["description"] == "how late the bus is"
    (version,) = one["versions"]
    assert (version["alias"], version["same"]) == ("champion", True), "owner and description change nothing"
    assert version["live_since"]
    (seen,) = one["profiles"]
    assert (seen["of"], seen["rows"], seen["missing"], seen["mean"]) == ("v1", 4, 0.25, 3.0)
    assert one["lineage"]["shards"] == {"trips": 2}
    assert told(world, "features", "line")["profiles"][0]["frequent"][0] == "A 50%"
    assert "def line_length" in told(world, "features", "line_length")["source"]
    assert "fleet" in ran(world, "features").stdout
    assert "how late" in ran(world, "features", WINDOW).stdout
    assert "did you mean 'distance'" in ran(world, "features", "distanc", code=1).output
