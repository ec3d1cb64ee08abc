"""Drift of live traffic: against the training rows of the champion, as a whole and by segment."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ct.control import runs, watching
from ct.control.place import Place
from ct.control.rows import profiled_by
from ct.data.predictions import Inbox
from ct.data.profile import Profiles
from ct.errors import NotFound
from ct.ids import canonical
from ct.registry import routes
from ct.registry.routes import Arm
from ct.settings import load
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from tests.control import shop

AVERAGE = "price_mean_by_city_30d"


def asked(rng: np.random.Generator, n: int, oslo: float) -> dict[str, np.ndarray]:
    """Features of n sales: prices around 100, in Oslo higher by `oslo`."""
    city = np.array(["Oslo", "Rome", "Bern", "Kyiv", "Riga", "Turin", "Lyon", "Graz"], dtype=object)[rng.integers(0, 8, n)]
    price = rng.normal(100, 10, n) + np.where(city == "Oslo", oslo, 0.0)
    return {"price": price, "city": city, AVERAGE: rng.normal(100, 1, n)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A project whose champion was trained on a thousand sales."""
    settings, line = load(tmp_path, {}), shop.pipeline()
    journal, artifacts = Journal(settings.database), Artifacts(settings.place("artifacts"))
    trained = Profiles.of(asked(np.random.default_rng(1), 8000, oslo=0.0), profiled_by(line))
    inputs = {"shards": {"sales": []}, "snapshots": {}, "until": 0, "params": {}, "seed": 1, "code": "", "pipeline": ""}
    begun = runs.start(journal, line.name, cause="by hand", inputs=inputs)
    facts = {"profile": artifacts.put(trained.to_bytes()), "report": {"candidate": {}, "maturity": {"hours": 2.0}}}
    runs.registered(journal, line.name, begun.id, version="v1", facts=facts)
    routes.put(journal, routes.first(line.name, Arm(version="v1", manifest="")), cause="first")
    yield Place(line, settings, journal, artifacts)
    journal.close()


def answer(place: Place, features: dict[str, np.ndarray]) -> None:
    inbox = Inbox(place.settings.inbox, "ab12")
    names = list(features)
    rows = [
        dict(zip(names, values, strict=True)) for values in zip(*(column.tolist() for column in features.values()), strict=True)
    ]
    blank = {"endpoint": place.pipeline.name, "version": "v1", "arm": "stable", "epoch": 1, "error": "", "score": 0.5}
    inbox.submit(
        [
            {"kind": "prediction", "id": f"p-{at}", "t": at, "event_time": at, "key": "", "unit": "", "context": {}}
            | {**blank, "request": {}, "features": row}
            for at, row in enumerate(rows)
        ]
    ).result()
    inbox.close()


def test_the_segments_that_are_features_are_profiled(place: Place) -> None:
    assert profiled_by(place.pipeline) == ("city",)


def test_before_the_first_answer_there_is_nothing_to_compare(place: Place) -> None:
    with pytest.raises(NotFound, match="has not answered"):
        watching.live_drift(place)


def test_what_drifts_in_one_segment_alone_is_found_there(place: Place) -> None:
    answer(place, asked(np.random.default_rng(2), 4000, oslo=10.0))
    found = watching.live_drift(place)
    assert (found["reference"], found["rows"], found["drifted"]) == ("v1", 4000, [])
    (part,) = found["slices"]
    assert (part["slice_column"], part["slice_value"], part["feature"]["column"]) == ("city", "Oslo", "price")
    assert part["feature"]["effect"] == pytest.approx(0.45, abs=0.1)
    assert "sd)" in part["feature"]["note"]
    assert canonical(found)


def test_traffic_like_the_training_rows_has_not_drifted(place: Place) -> None:
    answer(place, asked(np.random.default_rng(3), 4000, oslo=0.0))
    found = watching.live_drift(place)
    assert (found["drifted"], found["slices"], found["cause"]) == ([], [], "")


def test_live_quality_waits_until_truths_have_had_their_time(place: Place) -> None:
    """Good answers are known to be so at once, bad ones after two hours: of the last two hours' answers only the good ones are known."""
    hour, rng, inbox = 3_600_000_000, np.random.default_rng(4), Inbox(place.settings.inbox, "ab12")
    blank = {"endpoint": place.pipeline.name, "version": "v1", "arm": "stable", "epoch": 1, "error": "", "key": "", "unit": ""}
    told = []
    for at in range(1000):
        made, label = at * hour // 100, float(rng.random() < 0.5)
        right = rng.random() < 0.7
        score = round(abs(label - (0.1 if right else 0.9)), 1)
        known = made + (0 if right else 2 * hour)
        row = {"kind": "prediction", "id": f"p-{at}", "t": made, "event_time": made, "score": score, "context": {}}
        told.append({**blank, **row, "request": {}, "features": {}})
        if known <= 10 * hour:
            told.append({"kind": "label", "id": f"p-{at}", "t": known, "value": label, "label": label, "known_at": known})
    inbox.submit(told).result()
    inbox.close()
    seen = watching.live_quality(place)["v1"]
    assert (seen["predictions"], seen["young"], seen["maturity"]) == (800, 200, 1.0)
    assert seen["auroc"] == pytest.approx(0.7, abs=0.05), "with the young ones it would be 0.74"
