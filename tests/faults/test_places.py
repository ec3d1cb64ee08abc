"""The whole way of the data on SQLite and a local disk, and on PostgreSQL and the S3 API: the same at both."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ct.data import catalog, predictions
from ct.data.predictions import Inbox
from ct.data.tables import Warehouse, verified
from ct.features import build as features
from ct.settings import load
from ct.store.artifacts import Artifacts
from ct.store.files import Files, get
from ct.store.journal import Journal

from ..data.conftest import Place, sales
from .sold import built, contents, rows, state


def fresh(place: Place) -> Place:
    """The project as a process sees it that has just started."""
    settings = load(place.root, {}, database_url=place.settings.database_url, storage=place.settings.storage)
    return Place(place.root, settings, Journal(settings.database), Warehouse(settings), Artifacts(settings.place("artifacts")))


def test_from_files_to_features(anywhere: Place, tmp_path: Path) -> None:
    place, plain = anywhere, Place.at(tmp_path / "plain")
    for project in (place, plain):
        for month in (1, 2):
            assert project.ingest(project.file(sales(month), f"sales-{month}.parquet")).kind == "published"
        wrong = project.file(sales(3).set_column(4, "price", pa.array([9e9] * 300)), "wrong.parquet")
        assert project.ingest(wrong).kind == "quarantined"
        assert project.ingest(wrong).kind == "quarantined"
    assert state(place) == state(plain)
    again = fresh(place)
    made = built(again)
    assert contents(made) == contents(built(plain))
    assert made.digest == built(plain).digest
    assert features.read(made).num_rows == 600
    assert not any(part.built for part in built(again).parts)
    for shard in catalog.published(again.journal, "sales"):
        assert verified(shard) is shard
        assert shard.path.startswith(again.settings.place("warehouse"))
    (held,) = catalog.quarantined(again.journal, "sales")
    assert get(held["file"]) == (place.root / "wrong.parquet").read_bytes()
    assert held["file"].startswith(again.settings.place("quarantine"))
    assert again.journal.verify() == place.journal.head()
    again.journal.close()
    plain.journal.close()


def test_nothing_of_a_project_on_an_object_store_is_on_the_disk(anywhere: Place) -> None:
    place = anywhere
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    built(place)
    kept = {path.name for path in place.settings.home.iterdir()} if place.settings.home.exists() else set()
    if place.settings.storage:
        assert kept <= {"incoming"}
        names = {entry.name.partition("/")[0] for entry in Files(place.settings.storage).list()}
        assert names == {"warehouse", "artifacts", "features"}
    else:
        assert {"warehouse", "artifacts", "features", "journal.db", "catalog.db"} <= kept


def test_the_prediction_log_is_committed_to_where_tables_are(anywhere: Place) -> None:
    place = anywhere
    inbox = Inbox(place.settings.inbox, "r")
    inbox.submit(
        [{"kind": "label", "id": f"p-{at}", "t": at, "value": 1.0, "label": 1.0, "known_at": at} for at in range(50)]
    ).result(10)
    assert predictions.commit(place.settings, place.warehouse) == 50
    inbox.submit([{"kind": "label", "id": "p-last", "t": 99, "value": 1.0, "label": 0.0, "known_at": 99}]).result(10)
    assert len(predictions.everything(place.settings)) == 51
    inbox.close()
    again = fresh(place)
    assert predictions.commit(again.settings, again.warehouse) == 1
    assert predictions.commit(again.settings, again.warehouse) == 0
    assert len(predictions.committed(again.settings)) == 51
    assert list(place.settings.inbox.glob("*.log")) == []
    again.journal.close()


def test_machines_that_share_only_the_stores_do_not_overtake_each_other(anywhere: Place, monkeypatch) -> None:
    """Two files of one name, judged at the same time on two machines: the second is judged again, and refused."""
    place = anywhere
    other = fresh(place)
    object.__setattr__(other, "settings", other.settings.model_copy(update={"state": Path("elsewhere")}))
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    mine = place.file(sales(2), "sales-2.parquet")
    (place.root / "b").mkdir()
    theirs = place.file(sales(3), "b/sales-2.parquet")
    stage, raced = place.warehouse.stage, []

    def race(*args, **kwargs):
        if not raced:
            raced.append(other.ingest(theirs).kind)
        return stage(*args, **kwargs)

    monkeypatch.setattr(place.warehouse, "stage", race)
    outcome = place.ingest(mine)
    assert raced == ["published"]
    assert outcome.kind == "quarantined"
    assert "published already" in outcome.reasons[0].found
    assert rows(place) == sorted([*sales(1)["id"].to_pylist(), *sales(3)["id"].to_pylist()])
    assert pc.count_distinct(pa.array(rows(place))).as_py() == 600
    place.journal.verify()
    other.journal.close()
