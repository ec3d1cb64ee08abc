"""Alerts: journaled, posted, once a day; a bad webhook never stops the caller."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ct.clock import TurnableClock
from ct.errors import InvalidSettings
from ct.monitoring import alerts
from ct.monitoring.alerts import Alert, send
from ct.settings import Settings
from ct.store.journal import Journal

START = datetime(2013, 4, 1, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    yield made
    made.close()


class Hook(HTTPServer):
    """Keeps what it is sent; answers after `delay` seconds with `status`."""

    def __init__(self, status: int = 200, delay: float = 0.0) -> None:
        self.got: list[dict[str, str]] = []
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                time.sleep(delay)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/secret-path"


def raised(journal: Journal) -> list[str]:
    return [event.data["title"] for event in journal.read(alerts.stream("p"), types=["AlertRaised"])]


def test_an_alert_is_journaled_logged_and_posted(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook()
    with caplog.at_level(logging.INFO, logger="ct.alerts"):
        assert send(Alert("PAGE", "down", "ops", "why"), pipeline="p", journal=journal, settings=Settings(webhook=hook.url))
    hook.shutdown()
    assert raised(journal) == ["down"]
    assert "PAGE down (owner ops) why" in caplog.text
    assert hook.got[0] | {"at": ""} == {
        "pipeline": "p", "tier": "PAGE", "title": "down", "owner": "ops", "detail": "why", "key": "down", "at": "",
    }  # fmt: skip


def test_one_key_once_a_day(journal: Journal) -> None:
    clock = TurnableClock(START)

    def again(key: str) -> bool:
        return send(Alert("WARN", "t", key=key), pipeline="p", journal=journal, settings=Settings(), clock=clock)

    assert again("a")
    assert not again("a")
    assert again("b")
    clock.turn(timedelta(hours=23, minutes=59))
    assert not again("a")
    clock.turn(timedelta(minutes=2))
    assert again("a")
    assert len(raised(journal)) == 3


def test_two_processes_raise_one_alert(tmp_path: Path) -> None:
    url, said = f"sqlite:///{tmp_path / 'journal.db'}", []

    def one() -> None:
        journal = Journal(url)
        said.append(send(Alert("WARN", "same"), pipeline="p", journal=journal, settings=Settings()))
        journal.close()

    Journal(url).close()
    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [False] * 5 + [True]


@pytest.mark.parametrize("case", ["refused", "error", "slow", "not http", "nonsense"])
def test_a_bad_webhook_is_logged_without_its_path_and_forgotten(
    case: str, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.3)
    hook = Hook(status=500 if case == "error" else 200, delay=3.0 if case == "slow" else 0.0)
    url = {"refused": "http://127.0.0.1:1/secret-path", "not http": "file:///secret-path", "nonsense": "secret-path"}
    begun = time.monotonic()
    assert send(Alert("WARN", case), pipeline="p", journal=journal, settings=Settings(webhook=url.get(case, hook.url)))
    assert time.monotonic() - begun < 2.9, "a slow one is not waited for"
    hook.shutdown()
    assert raised(journal) == [case]
    assert "failed" in caplog.text
    assert "secret" not in caplog.text


def test_wrong_alerts_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="LOUD"):
        Alert("LOUD", "x")
    with pytest.raises(InvalidSettings, match="zone"):
        Alert("INFO", "x", at=datetime(2013, 1, 1))
