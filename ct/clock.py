"""Time as an argument: the system's clock, or one that a test turns."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from ct.errors import InvalidPipeline

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CENTURY = 36_500 * 86_400


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The present moment, with zone UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class TurnableClock:
    """A clock that stands still until it is turned. `sleep` turns it."""

    at: datetime

    def now(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.turn(timedelta(seconds=seconds))

    def turn(self, by: timedelta) -> None:
        """Move the hands forward by `by`."""
        self.at += by


def duration(text: str) -> timedelta:
    """Parse a span such as `90s`, `15m`, `3h`, `7d` or `2w`.

    Raises InvalidPipeline for anything else, zero, negatives and more than a century included.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip()) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise InvalidPipeline(
            f"{text!r} is not a span of time", "a whole number and one of s m h d w", "write for example '3h' or '7d'"
        )
    seconds = int(match[1]) * int(timedelta(**{_UNITS[match[2]]: 1}).total_seconds())
    if seconds > _CENTURY:
        raise InvalidPipeline(f"a span of {text!r}", "a century at most: 36500d", "write a shorter one")
    return timedelta(seconds=seconds)
