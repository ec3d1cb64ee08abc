"""The last known good on a node's disk: newest epoch, verified files, an order that needs nothing else."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from ct import settings
from ct.errors import Conflict, Corrupt, InvalidRequest, NotFound
from ct.registry import files, pinned, routes
from ct.registry.routes import Arm, Share
from ct.settings import Settings
from ct.store.artifacts import Artifacts

from .made import made

ONE, TWO = Arm("v1", "1" * 64), Arm("v2", "2" * 64)


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return settings.load(tmp_path, environ={})


def test_the_newest_route_stays_whoever_writes_last(place: Settings) -> None:
    assert pinned.pinned(place, "p") is None
    first = routes.first("p", ONE)
    second = first.with_candidates((Share(TWO, 1000),))
    assert pinned.pin(place, second)
    assert not pinned.pin(place, first)
    assert pinned.pinned(place, "p") == second
    known = [second]
    for _ in range(20):
        known.append(known[-1].with_canary(TWO, weight=500))
    threads = [threading.Thread(target=pinned.pin, args=(place, route)) for route in reversed(known)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pinned.pinned(place, "p") == known[-1]
    anew = routes.first("p", ONE)  # the project was begun again: its epochs count from 1
    assert pinned.pin(place, anew)
    assert pinned.pinned(place, "p") == anew


def test_a_pin_that_was_changed_is_told(place: Settings) -> None:
    pinned.pin(place, routes.first("p", ONE))
    (file,) = (place.home / "pinned").glob("*.json")
    assert file.stat().st_mode & 0o077 == 0, "it holds the key of prediction ids"
    file.write_text(file.read_text().replace("v1", "v9"))
    with pytest.raises(Corrupt, match="another hash"):
        pinned.pinned(place, "p")
    for text in ("", "[]", "{", '{"route": 1}'):
        file.write_text(text)
        with pytest.raises(Corrupt):
            pinned.pinned(place, "p")
    assert pinned.pin(place, routes.first("p", ONE)), "and is replaced by the next"


def test_files_are_there_without_the_store_and_mended_from_it(place: Settings) -> None:
    store = Artifacts(place.place("artifacts"))
    manifest = files.store(store, made("a"))
    assert pinned.fetch(place, store, manifest) == made("a")
    gone = Artifacts(place.root / "nowhere")
    assert pinned.fetch(place, gone, manifest) == made("a")
    held = Path(pinned.cache(place).address(pinned.cache(place).manifest(manifest)[files.ONNX]))
    held.write_bytes(b"other")
    with pytest.raises(NotFound):
        pinned.fetch(place, gone, manifest)
    assert pinned.fetch(place, store, manifest) == made("a")
    assert pinned.fetch(place, gone, manifest) == made("a")


def test_only_files_of_pinned_routes_stay(place: Settings) -> None:
    store = Artifacts(place.place("artifacts"))
    arms = [Arm(name, files.store(store, made(name))) for name in ("a", "b", "c")]
    for arm in arms:
        pinned.fetch(place, store, arm.manifest)
    for path in (place.home / "pinned" / "files").glob("*/*"):
        os.utime(path, (0, 0))
    pinned.fetch(place, store, arms[1].manifest)
    pinned.pin(place, routes.first("p", arms[0]))
    gone = Artifacts(place.root / "nowhere")
    assert pinned.fetch(place, gone, arms[0].manifest) == made("a")
    with pytest.raises(NotFound):
        pinned.fetch(place, gone, arms[2].manifest)


def test_an_order_names_the_epoch_it_ends(place: Settings) -> None:
    with pytest.raises(NotFound, match="no route of 'p' is pinned"):
        pinned.abort_offline(place, "p")
    route = routes.first("p", ONE)
    pinned.pin(place, route)
    with pytest.raises(Conflict, match="no candidate"):
        pinned.abort_offline(place, "p")
    pinned.pin(place, route.with_canary(TWO, weight=1000))
    assert pinned.offline(place, "p") is None
    order = pinned.abort_offline(place, "p", by="ann", cause="it lies")
    assert (order.epoch, order.by, order.cause) == (2, "ann", "it lies")
    assert pinned.offline(place, "p") == order
    pinned.order_place(place, "p").write_text(json.dumps({"epoch": "x"}))
    with pytest.raises(Corrupt):
        pinned.offline(place, "p")
    for name in ("", "../p", "a/b", ".p"):
        with pytest.raises(InvalidRequest):
            pinned.offline(place, name)
