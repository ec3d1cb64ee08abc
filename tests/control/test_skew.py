"""Skew between what predictions were made from and what shards say: none where all is well, exactly the touched features where not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct import Label, Pipeline, settings
from ct.control import skew
from ct.control.place import Place
from ct.data.ingest import ingest
from ct.data.tables import Warehouse
from ct.features import online
from ct.registry import routes, versions
from ct.serving.replica import Replica
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from tests.serving.tiny import FEATURES, TRIPS, Project

HOUR = 3_600_000_000
START = 1_714_521_600_000_000  # 1 May 2024
WINDOW = "late_mean_by_bus_7d"
Trip = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Stands for a model, a gate or a plan."""

    def validate(self) -> list[str]:
        return []


def text(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1e6, UTC).isoformat()


def trips(count: int = 24) -> list[Trip]:
    """A trip an hour; three buses take turns; each arrives half an hour later."""
    rng = np.random.default_rng(5)
    return [
        {
            "trip": f"t{at}",
            "leaves": START + at * HOUR,
            "distance": float(rng.integers(50, 200)),
            "line": "AB"[at % 2],
            "bus": f"b{at % 3}",
            "late": float(rng.normal(5, 10)),
            "arrives": START + at * HOUR + HOUR // 2,
        }
        for at in range(count)
    ]


class World:
    """A served project whose table is fed by pushes first and by shards later."""

    def __init__(self, folder: Path) -> None:
        found = settings.load(folder, environ={})
        self.project = Project(found, Artifacts(found.place("artifacts")), Journal(found.database))
        line = Pipeline(
            name="tiny", table=TRIPS, label=Label("late", above=15.0, known_at="arrives"), features=FEATURES,
            model=Part(), gate=Part(), rollout=Part(),
        )  # fmt: skip
        self.place = Place(line, found, self.project.journal, self.project.artifacts)
        arm = self.project.version("v1")
        versions.register(
            self.project.journal, "tiny", manifest=arm.manifest, run="run-1", verdict="pass", metrics={}, reasons=()
        )
        self.project.put(routes.first("tiny", arm))
        self.replica = Replica(found, "tiny")

    def live(self, rows: Sequence[Trip], *, push: Callable[[Trip], Trip | None] = lambda row: row) -> None:
        """Ask for each trip when it leaves; what has arrived by then has been pushed, as `push` has it."""

        async def go() -> None:
            waiting = list(rows)
            for row in rows:
                while waiting and waiting[0]["arrives"] <= row["leaves"]:
                    if (told := push(waiting.pop(0))) is not None:
                        times = {name: text(told[name]) for name in ("leaves", "arrives")}
                        await self.replica.observe("trips", [{**told, **times}])
                asked = {name: row[name] for name in ("trip", "distance", "line", "bus")}
                await self.replica.predict([{**asked, "leaves": text(row["leaves"])}])

        asyncio.run(go())

    def publish(self, rows: Sequence[Trip], name: str = "may") -> None:
        stamp = pa.timestamp("us", tz="UTC")
        columns = {
            key: pa.array([row[key] for row in rows], stamp if key in ("leaves", "arrives") else None) for key in rows[0]
        }
        path = self.place.settings.root / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        outcome = ingest(
            path, TRIPS, settings=self.place.settings, journal=self.place.journal,
            warehouse=Warehouse(self.place.settings), artifacts=self.place.artifacts,
        )  # fmt: skip
        assert outcome.kind == "published", outcome


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def by_name(found: skew.Skew) -> dict[str, skew.FeatureSkew]:
    return {item.name: item for item in found.features}


def test_where_nothing_went_wrong_every_bit_agrees_and_the_newest_rows_wait_for_their_shard(world: World) -> None:
    rows = trips()
    world.live(rows)
    nothing = skew.measure(world.place)
    assert (nothing.predictions, nothing.compared, nothing.pending) == (24, 0, 24)
    world.publish(rows[:20])
    found = skew.measure(world.place)
    assert (found.compared, found.pending, found.skewed) == (20, 4, ())
    assert {item.name: (item.compared, item.equal) for item in found.features} == dict.fromkeys(
        ("distance", "line", WINDOW), (20, 20)
    )
    assert found.published["trips"] == text(rows[19]["leaves"])
    assert skew.measure(world.place, last=6).compared == 2
    assert skew.measure(world.place, since=rows[0]["leaves"]).predictions == 24


def test_a_pushed_row_that_differs_from_the_shard_touches_exactly_the_features_that_read_it(world: World) -> None:
    rows = trips()
    world.live(rows, push=lambda row: {**row, "late": row["late"] + (100.0 if row["trip"] == "t6" else 0.0)})
    world.publish(rows)
    found = skew.measure(world.place)
    assert found.skewed == (WINDOW,)
    item = by_name(found)[WINDOW]
    later = [row for row in rows if row["bus"] == "b0" and row["leaves"] > rows[6]["arrives"]]
    assert (item.compared, item.different, item.late) == (24, len(later), 0)
    gaps = [gap for gap, _ in item.examples]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == pytest.approx(100 / 3), "the first trip that saw it had three behind it"
    assert found.to_json()["skewed"] == [WINDOW]


def test_rows_that_came_too_late_for_the_answer_are_late_data_and_no_skew(world: World) -> None:
    rows = trips()
    world.live(rows, push=lambda row: None if row["trip"] == "t6" else row)
    world.publish(rows)
    found = skew.measure(world.place)
    assert found.skewed == ()
    later = [row for row in rows if row["bus"] == "b0" and row["leaves"] > rows[6]["arrives"]]
    assert (by_name(found)[WINDOW].late, by_name(found)[WINDOW].equal) == (len(later), 24 - len(later))


def test_what_the_store_has_forgotten_is_too_old_to_tell(world: World) -> None:
    rows = trips()
    world.live(rows, push=lambda row: None if row["trip"] == "t6" else row)
    world.publish(rows)
    store = online.opened(world.place.settings)
    store.trim(max(row["leaves"] for row in rows) + 1_000 * HOUR)
    store.close()
    found = skew.measure(world.place)
    later = [row for row in rows if row["bus"] == "b0" and row["leaves"] > rows[6]["arrives"]]
    item = by_name(found)[WINDOW]
    assert (item.forgotten, item.late, item.different) == (len(later), 0, 0)
    assert found.skewed == ()


def test_without_a_store_that_tells_a_late_row_counts_as_skew(world: World) -> None:
    rows = trips()
    world.live(rows, push=lambda row: None if row["trip"] == "t6" else row)
    world.publish(rows)
    for path in world.place.settings.home.glob("online.db*"):
        path.unlink()
    assert skew.measure(world.place).skewed == (WINDOW,)


def test_a_sample_is_the_same_every_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = trips()
    world.live(rows, push=lambda row: {**row, "late": row["late"] + 1.0})
    world.publish(rows)
    monkeypatch.setattr(skew, "SAMPLE", 8)
    monkeypatch.setattr(skew, "AT_ONCE", 3)
    one, other = skew.measure(world.place), skew.measure(world.place)
    assert one == other
    assert one.compared == 8
    assert by_name(one)[WINDOW].compared == 8


def test_a_version_that_cannot_be_read_is_named_and_not_compared(world: World) -> None:
    rows = trips(4)
    world.live(rows)
    world.publish(rows)
    empty = skew.Place(
        world.place.pipeline, world.place.settings, world.place.journal, Artifacts(str(world.place.settings.root / "lost"))
    )
    found = skew.measure(empty)
    assert list(found.refused) == ["v1"]
    assert (found.predictions, found.compared, found.pending) == (4, 0, 0)
