"""Who may come in: the ASGI layer that asks every request for a token and its role, and the tokens as a replica knows them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from ct.errors import CtError, InvalidRequest, InvalidSettings, NotFound, Unavailable
from ct.governance import access, secretfiles
from ct.governance.access import Gatekeeper, Token
from ct.governance.binds import loopback
from ct.serving.replies import App, Receive, Scope, Send, refuse
from ct.settings import Settings
from ct.store.journal import Journal

POLL_SECONDS = 1.0
COPY = "access.json"


class Door(Protocol):
    """One path of a table of paths."""

    @property
    def role(self) -> str:
        """The role it needs; "" for none."""
        ...


class Gate:
    """The tokens in force in this process: read from the journal, kept on local disk for a time without database.

    Where neither is to be had nobody is let in: what is not known is no permission. It is never open to all beyond loopback, whatever an old
    copy says.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._closed = settings, not loopback(settings.host)
        self._journal: Journal | None = None
        self._seen = -1
        self._keeper: Gatekeeper | None = None
        try:
            self.refresh()
        except CtError:
            self._keeper = self._kept()

    def admit(self, secret: str, needed: str) -> Token | None:
        """The caller, if they may pass; None where nobody is asked. Raises Unauthenticated, Forbidden or Unavailable."""
        if not needed:
            return None
        if self._keeper is None:
            raise Unavailable("who may come in is not known yet", "the journal", "try again; see that the database answers")
        return self._keeper.admit(secret, needed)

    def refresh(self) -> None:
        """Read the journal, if its tokens have changed. Raises Unavailable, and what was known stays in force."""
        if self._journal is None:
            self._journal = Journal(self._settings.database)
        version = self._journal.version(access.STREAM)
        if version == self._seen:
            return
        held = access.tokens(self._journal)
        self._keeper, self._seen = Gatekeeper(held, closed=self._closed), version
        with suppress(OSError):  # the copy is for a bad day; a full disk keeps nobody from a good one
            secretfiles.write(self._settings.home / COPY, json.dumps(access.to_json(held)))

    async def keep_current(self, fault: Callable[[str], None] = lambda _: None) -> None:
        """Poll the journal for ever. A journal that does not answer changes nothing."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:  # the loop must outlive any fault; what it met is shown by /metrics
                fault(type(error).__name__)

    def _kept(self) -> Gatekeeper | None:
        try:
            held = access.from_json(json.loads(secretfiles.read(self._settings.home / COPY)))
        except (InvalidSettings, OSError, ValueError, KeyError, TypeError):
            return None
        return Gatekeeper(held, closed=self._closed)


class Access:
    """The ASGI layer. `found` looks a path up in a table of doors, whose first part says the role; what is not in it does not exist.

    Only the Authorization header counts: no cookie, no query. `hosts` are the Host headers that are answered, all when empty.
    `answered` is told of each status that this layer sends itself.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        found: Callable[[str], tuple[Door, Any] | None],
        *,
        hosts: Iterable[str] = (),
        answered: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._app, self._gate, self._found = app, gate, found
        self._hosts, self._answered = frozenset(hosts), answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._admit(scope)
        except CtError as error:
            self._answered(await refuse(scope, send, error))  # at once: nothing of the body has been read
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        shown, host = [], b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                shown.append(value)
            elif name == b"host":
                host = value
        if self._hosts and (named := _without_port(host)) not in self._hosts:
            raise InvalidRequest(
                f"the Host header {named[:60]!r}", "an address of this endpoint", "add it to `hosts` in ct.toml", status=421
            )
        door = self._found(scope["path"])
        if door is None:
            raise NotFound(f"there is no path {scope['path'][:100]!r}", "a documented path", "check the spelling")
        # Of two headers nobody can say which one counts, so neither does.
        secret = access.bearer(shown[0].decode("latin-1")) if len(shown) == 1 else ""
        self._gate.admit(secret, door[0].role)


def hosts(settings: Settings, bound: str) -> tuple[str, ...]:
    """The Host headers to answer when bound to `bound`.

    On loopback only its names and `settings.hosts`: a page in a browser whose name was made to point here (DNS rebinding) sends its own.
    Beyond loopback what `settings.hosts` says, anything when it says nothing.
    """
    own = ("localhost", "127.0.0.1", "::1", bound.strip("[]").lower()) if loopback(bound) else ()
    return (*own, *(name.lower() for name in settings.hosts))


def _without_port(host: bytes) -> str:
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text
