"""Alerts: recorded in the journal, logged, posted to a webhook; once a day for each key. What deserves one is decided elsewhere."""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from ct.clock import Clock, SystemClock
from ct.errors import Conflict, InvalidSettings
from ct.settings import Settings
from ct.store.journal import Journal, New

TIERS = {"INFO": logging.INFO, "WARN": logging.WARNING, "PAGE": logging.ERROR}
QUIET = timedelta(hours=24)
TIMEOUT_S = 2.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class Alert:
    """Something a person should know. `tier` is INFO (look some day), WARN (look today) or PAGE (look now).

    Alerts with the same `key` (default: the title) within a day are one. `at` is the present when None.
    """

    tier: str
    title: str
    owner: str = ""
    detail: str = ""
    key: str = ""
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise InvalidSettings(f"alert tier {self.tier!r}", f"one of {list(TIERS)}", "choose one of these")
        if self.at is not None and self.at.tzinfo is None:
            raise InvalidSettings(
                f"alert time {self.at.isoformat()} without a zone", "a time with its zone", "use datetime.now(UTC)"
            )


def stream(pipeline: str) -> str:
    """The journal stream of a pipeline's alerts."""
    return f"alert/{pipeline}"


def send(alert: Alert, *, pipeline: str, journal: Journal, settings: Settings, clock: Clock | None = None) -> bool:
    """Raise `alert`: journal, log line, webhook. False when one with its key was raised less than a day before.

    A webhook that fails or is slow (2 s) is logged and forgotten: the journal keeps the alert. Killed between journal and webhook,
    the alert is not posted again.
    """
    at = (alert.at or (clock or SystemClock()).now()).astimezone(UTC)
    key = alert.key or alert.title
    data = {
        "tier": alert.tier,
        "title": alert.title,
        "owner": alert.owner,
        "detail": alert.detail,
        "key": key,
        "at": at.isoformat(),
    }
    if not _record(journal, stream(pipeline), data, at):
        return False
    log = logging.getLogger("ct.alerts")
    log.log(TIERS[alert.tier], "%s %s (owner %s) %s", alert.tier, alert.title, alert.owner or "nobody", alert.detail)
    if settings.webhook:
        _post(settings.webhook, {"pipeline": pipeline, **data}, log)
    return True


def _record(journal: Journal, name: str, data: dict[str, str], at: datetime) -> bool:
    """Append the alert unless its key was just raised. Compare-and-set: of two processes with the same alert one raises it."""
    for _ in range(_ATTEMPTS):
        version = journal.version(name)
        raised = [
            datetime.fromisoformat(event.data["at"])
            for event in journal.read(name, types=["AlertRaised"])
            if event.data["key"] == data["key"]
        ]
        if any(abs(at - earlier) < QUIET for earlier in raised):
            return False
        try:
            journal.append(name, [New("AlertRaised", dict(data))], expected=version)
        except Conflict:
            continue
        return True
    journal.append(name, [New("AlertRaised", dict(data))])  # rather twice than never
    return True


def _post(url: str, data: dict[str, str], log: logging.Logger) -> None:
    """POST as JSON in a thread that is waited for TIMEOUT_S at most: a socket's own timeout starts anew with every byte."""
    host = urlsplit(url).hostname  # a webhook's path is a secret and is not logged
    failed: list[str] = []

    def post() -> None:
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                raise ValueError("not an http or https URL")
            body = json.dumps(data).encode()
            request = urllib.request.Request(url, body, {"content-type": "application/json"}, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass
        except Exception as error:  # whatever a foreign server does, an alert may never stop the loop
            failed.append(type(error).__name__)

    thread = threading.Thread(target=post, name="ct-webhook", daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if thread.is_alive():
        failed.append("no answer in time")
    if failed:
        log.warning("webhook at %s failed (%s); the alert is in the journal", host, failed[0])
