"""A request that changes something is carried out once: its key and its epoch are looked at in the transaction of the event that decides it.

So it holds across processes and restarts. What the key was answered stays in the journal, in a stream of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ct.errors import Conflict, CtError, Forbidden, InvalidRequest, Unauthenticated, Unavailable
from ct.ids import sha256
from ct.registry import routes
from ct.store import leases
from ct.store.journal import Journal, New

WAIT_SECONDS = 30.0
"""So long a request waits for another one with its key, which is in work."""
TTL_SECONDS, BEAT_SECONDS = 10.0, 1.0
_LANES = 2
"""Keys share leases by so many first digits of their digest, so that there are 256 leases and not one a key."""

DECIDES: Mapping[str, tuple[str, ...]] = {
    "start": ("RolloutStarted",),
    "retry": ("RolloutStarted",),
    "promote": ("RolloutEnding", "RouteSet"),
    "abort": ("RolloutEnding",),
    "undo": ("RolloutEnding", "RouteSet"),
    "pause": ("RolloutPaused",),
    "resume": ("RolloutResumed",),
    "set_weight": ("RouteSet",),
    "set_flag": ("FlagSet",),
}
"""By the verb, the events of which the first decides it: before it nothing was done that may not be done again, after it only what
`ct watch` would do as well."""


class Stale(InvalidRequest):
    """The route is of another epoch than If-Match says."""


@dataclass(frozen=True)
class Decided:
    """What the journal says of a key: who took it for what, and the answer; `status` is 0 while there is none."""

    asked: str
    rollout: str = ""
    event: str = ""
    status: int = 0
    said: Any = None


@dataclass
class Once:
    """One request. `key` is the caller's, empty for none; `asked` the digest of method, path and body; `epochs` those that If-Match names,
    empty for any; `by` the caller, whose keys are nobody else's.
    """

    journal: Journal
    endpoint: str
    verb: str
    asked: str
    key: str = ""
    by: str = ""
    rollout: str = ""
    epochs: frozenset[str] = frozenset()
    _lease: leases.Lease | None = field(default=None, repr=False)
    _deciding: Sequence[New] | None = field(default=None, repr=False)
    _after: bool = field(default=False, repr=False)

    @property
    def stream(self) -> str:
        """The journal stream of this caller's key."""
        return f"api/{self.endpoint}/{sha256(f'{self.by} {self.key}')[:40]}"

    @contextmanager
    def turn(self) -> Iterator[Decided | None]:
        """The block carries the request out and nobody else does: gives what is known of the key, None for a new one.

        Waits while another process has it in work. Raises Conflict where that takes too long, or the key came with another request.
        """
        if not self.key:
            yield None
            return
        with ExitStack() as held:
            until = time.monotonic() + WAIT_SECONDS
            while (known := self._known()) is None or not known.status:
                try:
                    self._lease = held.enter_context(leases.held(self.journal, self._lane, ttl=TTL_SECONDS, beat=BEAT_SECONDS))
                except leases.Held:
                    if time.monotonic() > until:
                        raise Conflict(
                            "the first request of this key is in work", "its answer", "ask again in a while"
                        ) from None
                else:
                    known = self._known()
                    break
            yield known

    @property
    def decided(self) -> bool:
        """Is what decides it in the journal?"""
        return self._after or bool(self.key and self.journal.version(self.stream))

    def watch(self, connection: sa.Connection, stream: str, events: Sequence[New]) -> None:
        """Look at each append of the verb until it is decided: is the epoch still the one that was meant, and the key new?"""
        if self._deciding is not None and self._deciding is not events:
            self._after = True  # what decides is in the journal, or nothing would follow it
            return
        self.match(connection)
        kinds = [event.type for event in events if self._decides(event)]
        if not kinds:
            return
        self._deciding = events  # the same object comes again where a database broke off
        if self._lease is not None:
            self._lease(connection)
            rollout = str(events[0].data.get("rollout", self.rollout))
            self.journal.add(connection, self.stream, [self._asked(event=kinds[0], rollout=rollout)], expected=0)

    def _decides(self, event: New) -> bool:
        # A rollout without a part in the route is ended before an undo: that alone makes nothing stable again.
        first = self.verb == "undo" and event.type == "RolloutEnding" and not event.data["to"]
        return event.type in DECIDES[self.verb] and not first

    def match(self, connection: sa.Connection | None = None) -> None:
        """Raises Stale when the route is of another epoch than was meant. A route's epoch is the number of events in its stream."""
        if not self.epochs:
            return
        epoch = self.journal.version(routes.stream(self.endpoint), connection)
        if str(epoch) not in self.epochs and ("*" not in self.epochs or not epoch):
            found = f"the route is of epoch {epoch}" if epoch else "there is no route"
            wanted = f"epoch {' or '.join(sorted(self.epochs))[:40]}"
            raise Stale(found, wanted, "read the route again and decide anew", status=412, field="if-match")

    def answered(self, status: int, said: Any) -> None:
        """Keep the answer. Raises Conflict when another one has been kept meanwhile."""
        if not self.key:
            return
        done = New("Answered", {"status": status, "said": said})
        begun = self.journal.version(self.stream)
        self.journal.append(self.stream, [done] if begun else [self._asked(), done], expected=begun if begun else 0)

    @property
    def _lane(self) -> str:
        return f"api/{self.endpoint}/{self.stream.rpartition('/')[2][:_LANES]}"

    def _known(self) -> Decided | None:
        told = list(self.journal.read(self.stream))
        if not told:
            return None
        first, last = told[0].data, told[-1].data
        if first["asked"] != self.asked:
            raise Conflict("this Idempotency-Key came with another request", "a new key", "use one key for one request")
        taken = Decided(str(first["asked"]), str(first["rollout"]), str(first["event"]))
        if told[-1].type != "Answered":
            return taken
        return Decided(taken.asked, taken.rollout, taken.event, int(str(last["status"])), last["said"])

    def _asked(self, *, event: str = "", rollout: str = "") -> New:
        told = {"key": self.key, "asked": self.asked, "verb": self.verb, "event": event, "rollout": rollout}
        return New("Asked", told)


def keeps(error: CtError) -> bool:
    """Is a refusal the key's answer for good? Not what nobody can answer yet, nor what another token or epoch would change."""
    return not isinstance(error, (Stale, Forbidden, Unauthenticated, Unavailable))
