"""The disk refuses to sync the prediction log (F25): rows go to another segment or are refused, none is acknowledged falsely or there twice."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ct.data import predictions
from ct.data.predictions import Inbox
from ct.errors import Unavailable
from ct.serving.endpoint import Endpoint
from ct.serving.replica import Replica

SCRIPT = str(Path(__file__).with_name("logging_rows.py"))
EIO = OSError(5, "Input/output error")


@pytest.mark.parametrize(("when", "some_refused"), [("4+3", False), ("4+1", True)], ids=["now and then", "for good"])
def test_a_kernel_that_fails_fsync_gets_no_false_acknowledgement(tmp_path: Path, when: str, some_refused: bool) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not on this machine: apt-get install strace")
    command = [
        strace,
        "-f",
        "-qq",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "trace=fsync",
        "-e",
        f"inject=fsync:error=EIO:when={when}",
    ]
    inbox = tmp_path / "inbox"
    done = subprocess.run([*command, sys.executable, SCRIPT, str(inbox), "12"], capture_output=True, text=True, timeout=60)
    if "PTRACE" in done.stderr or "attach" in done.stderr:
        pytest.skip("this machine does not let strace trace")
    assert done.returncode == 0, done.stderr
    said = [line.split(" ", 2) for line in done.stdout.splitlines()]
    acknowledged = [name for word, name, *_ in said if word == "acknowledged"]
    refused = [name for word, name, *_ in said if word == "refused"]
    assert len(said) == 12
    assert bool(refused) == some_refused
    assert acknowledged
    assert all("Input/output error" in line[2] for line in said if line[0] == "refused")
    syncs = [line for line in (tmp_path / "trace").read_text().splitlines() if "fsync(" in line]
    failed = sum("INJECTED" in line for line in syncs)
    assert failed > 2
    assert [entry["id"] for entry in predictions.read(inbox)[0]] == acknowledged, "each is there once, and no other"
    assert len(list(inbox.glob("*.log"))) == failed + 1 - some_refused, "a segment whose sync failed is given up"


def test_a_poisoned_segment_is_never_written_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the kernel may call dropped pages clean: a second fsync that succeeds would say nothing."""
    inbox, fsync = Inbox(tmp_path, "r"), os.fsync
    inbox.submit([{"kind": "label", "id": "a"}]).result(10)
    (poisoned,) = tmp_path.glob("*.log")

    def refuse(handle: int) -> None:
        raise EIO

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unavailable, match="Input/output"):
        inbox.submit([{"kind": "label", "id": "b"}]).result(10)
    size = poisoned.stat().st_size
    for _ in range(3):  # while the disk stays sick every row is refused, each in a segment of its own
        with pytest.raises(Unavailable):
            inbox.submit([{"kind": "label", "id": "c"}]).result(10)
    monkeypatch.setattr(os, "fsync", fsync)
    inbox.submit([{"kind": "label", "id": "d"}]).result(10)
    inbox.close()
    assert poisoned.stat().st_size == size
    found = [entry["id"] for entry in predictions.read(tmp_path)[0]]
    assert {"a", "d"} <= set(found)
    assert "c" not in found


def test_a_segment_that_could_not_be_named_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, rename = Inbox(tmp_path, "r"), os.rename

    def refuse(source: Any, target: Any) -> None:
        raise EIO

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(Unavailable, match="Input/output"):
        inbox.submit([{"kind": "label", "id": "a"}]).result(10)
    monkeypatch.setattr(os, "rename", rename)
    inbox.submit([{"kind": "label", "id": "b"}]).result(10)
    inbox.close()
    assert [entry["id"] for entry in predictions.read(tmp_path)[0]] == ["b"]


def test_a_request_whose_row_could_not_be_logged_is_not_answered_as_if(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "serving"))
    tiny: Any = importlib.import_module("tiny")
    from ct import settings
    from ct.store.artifacts import Artifacts
    from ct.store.journal import Journal

    place, fsync = settings.load(tmp_path, environ={}), os.fsync
    tiny.Project(place, Artifacts(place.place("artifacts")), Journal(place.database)).first()

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=Endpoint(Replica(place, "tiny")))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            before = await client.post("/predict", json=tiny.ROW)
            monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(EIO))
            during = await client.post("/predict", json=tiny.ROW)
            monkeypatch.setattr(os, "fsync", fsync)
            return [before, during, await client.post("/predict", json=tiny.ROW)]

    before, during, after = asyncio.run(ask())
    assert [before.status_code, during.status_code, after.status_code] == [200, 503, 200]
    assert during.headers["retry-after"]
    assert "prediction_id" not in during.text
    told = {answer.json()["predictions"][0]["prediction_id"] for answer in (before, after)}
    assert told <= {entry["id"] for entry in predictions.read(place.inbox)[0]}
