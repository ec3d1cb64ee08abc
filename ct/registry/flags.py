"""Feature flags of an endpoint: switches that replicas obey within a second or two, without a deploy. A fold of `flags/<endpoint>`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from ct.errors import InvalidRequest
from ct.ids import Json, canonical
from ct.store.journal import Event, Journal, New

BUILT_IN = ("canary", "shadow", "log", "batching")
OWN = "own."
MOST_BYTES = 1024
"""An own flag's value, as JSON, is at most this long; and there are at most so many own flags."""
_LOGS = ("durable", "fast")
_OWN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_WORDS = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True)
class Flags:
    """What is switched on. `canary`: candidates may answer; `shadow`: they may score unseen; `log`: "durable" answers once the record is on
    disk, "fast" before that; `batching`: requests may be scored together; `own`: a user's own flags, any JSON.
    """

    canary: bool = True
    shadow: bool = True
    log: Literal["durable", "fast"] = "durable"
    batching: bool = True
    own: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The flags by name, own ones with their prefix."""
        built = {name: getattr(self, name) for name in BUILT_IN}
        return built | {f"{OWN}{name}": value for name, value in sorted(self.own.items())}


def stream(endpoint: str) -> str:
    """The journal stream of an endpoint's flags."""
    return f"flags/{endpoint}"


def current(journal: Journal, endpoint: str) -> Flags:
    """The flags in force; the defaults where none was ever set."""
    return journal.fold(stream(endpoint), _step, Flags())


def checked(name: str, value: Json) -> Json:
    """`value` as the flag `name` keeps it: "on" and "off" become booleans. Raises InvalidRequest for unknown names and wrong values."""
    if name.startswith(OWN):
        return _own(name, value)
    if name not in BUILT_IN:
        near = get_close_matches(name, BUILT_IN, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"a flag of your own is named {OWN}{name}"
        raise InvalidRequest(f"no flag {name[:80]!r}", f"one of {', '.join(BUILT_IN)}, or {OWN}NAME", remedy, field=name[:80])
    if name == "log":
        if value not in _LOGS:
            raise InvalidRequest(f"log = {value!r}", "durable or fast", "choose one", field=name)
        return value
    said = _WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(said, bool):
        raise InvalidRequest(f"{name} = {value!r}", "on or off", "choose one", field=name)
    return said


def set_(journal: Journal, endpoint: str, name: str, value: Json, *, reason: str = "") -> Flags:
    """Set one flag; None takes an own flag away. Nothing is journaled when nothing changes. Raises InvalidRequest, or Conflict with another."""
    seen = journal.version(stream(endpoint))
    old, said = current(journal, endpoint), checked(name, value)
    new = _with(old, name, said)
    if len(new.own) > MOST_BYTES:
        raise InvalidRequest(f"{len(new.own)} own flags", f"at most {MOST_BYTES}", "take some away", field=name)
    if new != old:
        event = New("FlagSet", {"name": name, "value": said, "reason": reason})
        journal.append(stream(endpoint), [event], expected=seen)
    return new


def _own(name: str, value: Json) -> Json:
    if not _OWN.fullmatch(name.removeprefix(OWN)):
        raise InvalidRequest(f"the flag {name[:80]!r}", f"{OWN} and a-z, 0-9, - and _", "rename it", field=name[:80])
    try:
        size = len(canonical(value).encode())
    except (TypeError, ValueError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"{name}: {error}", "finite JSON", "give another value", field=name) from None
    if size > MOST_BYTES:
        raise InvalidRequest(f"{name}: {size:,} bytes", f"at most {MOST_BYTES:,}", "keep it short", field=name)
    return value


def _with(flags: Flags, name: str, value: Any) -> Flags:
    if not name.startswith(OWN):
        return replace(flags, **{name: value})
    others = {key: kept for key, kept in flags.own.items() if key != name.removeprefix(OWN)}
    return replace(flags, own=others if value is None else others | {name.removeprefix(OWN): value})


def _step(flags: Flags, event: Event) -> Flags:
    return _with(flags, event.data["name"], event.data["value"]) if event.type == "FlagSet" else flags
