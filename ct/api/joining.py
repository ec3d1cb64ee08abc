"""How a process that lives long asks the endpoint's control side: it joins the cluster that runs when a verb needs it, and leaves one that is gone.

Ray ends a process whose cluster has been gone for a minute, and keeps a thread for good each time that one joins: so it neither stays with a
dead cluster nor leaves after each verb.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ct.errors import CtError, Unavailable
from ct.serving import local
from ct.serving.client import Serving

if TYPE_CHECKING:
    from ct.control.act import Actor

LOOK_SECONDS = 5.0
"""So often it is looked whether the cluster is still there while nobody asks for anything."""
REACH_SECONDS = 2.0


class Cluster:
    """Whatever cluster runs the actor's endpoint, in the place of its `Serving`.

    It connects when it is first asked for something, and raises Unavailable where no cluster runs. What a verb journals before that is
    journaled at once, and replicas that have lost their cluster follow the journal.
    """

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._asked = threading.Lock()
        self._serving: Serving | None = None

    def __getattr__(self, name: str) -> Any:
        if self._serving is None:
            self._serving = self._connected()
        return getattr(self._serving, name)

    @contextmanager
    def joined(self, act: Actor) -> Iterator[None]:
        """The actor reaches the endpoint in the block."""
        with self._asked:
            self._part()
            vars(act)["serving"] = self
            yield

    def keep_watch(self) -> None:
        """Leave a cluster that is gone, for ever."""
        while True:
            time.sleep(LOOK_SECONDS)
            if self._asked.acquire(blocking=False):
                try:
                    with suppress(CtError):
                        self._part()
                finally:
                    self._asked.release()

    def _part(self) -> None:
        if self._serving is not None and self._gone():
            self._serving = None
            local.leave()

    def _gone(self) -> bool:
        """Is the cluster no more that this process is connected to, or does another head run in its place?"""
        target = self._act.settings.ray_address or os.environ.get("RAY_ADDRESS", "")
        if not target:
            found = local.address(self._act.settings)
            return not found or not local.joined(found)
        host, _, port = target.rpartition(":")
        if not port.isdecimal() or "/" in host:  # such as "auto": nobody can say
            return False
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except OSError:
            return True
        return False

    def _connected(self) -> Serving:
        try:
            local.connect(self._act.settings)
        except (Unavailable, ConnectionError, RuntimeError) as error:
            found = error.found if isinstance(error, Unavailable) else f"no Ray cluster: {type(error).__name__}"
            raise Unavailable(
                found, "a cluster that runs the endpoint", "run `ct deploy`; what was decided is journaled"
            ) from None
        return Serving(self._act.settings, self._act.pipeline.name)
