"""One scrape for all replicas of an endpoint: whoever is asked asks the others too, for one address hides them all. Counts nothing itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ct.serving import exposition
from ct.serving.exposition import Sample
from ct.serving.telemetry import FAMILIES

ANSWER_SECONDS = 1.0
"""How long a scrape waits for the other replicas; Prometheus gives up after 10 s."""
FORGET_SECONDS = 60.0
"""How long a replica that is gone is still told as down."""


def text(endpoint: str, replicas: Mapping[str, list[Sample] | None], least: int) -> str:
    """The samples of all replicas, each labelled by its replica. None stands for one that did not answer. Raises as `exposition.text`."""
    where = {"endpoint": endpoint}
    made: list[Sample] = [("ct_replicas_least", where, least)]
    for replica, samples in sorted(replicas.items()):
        made.append(("ct_replica_up", {**where, "replica": replica}, int(samples is not None)))
        made += [(name, {**labels, "replica": replica}, value) for name, labels, value in samples or ()]
    return exposition.text(FAMILIES, made)


class Siblings:
    """The replicas of one Serve deployment as one of them, `own`, sees them. Called on its event loop.

    Who lives is told by Ray's list of named actors, what they counted by Serve's broadcast. Neither is waited for longer than ANSWER_SECONDS.
    """

    def __init__(self, app: str, deployment: str, own: str) -> None:
        self._app, self._deployment, self._own = app, deployment, own
        self._handle: Any = None
        self._seen: dict[str, float] = {}
        self._listing: asyncio.Task[set[str]] | None = None

    async def ask(self) -> dict[str, list[Sample] | None]:
        """The samples of each other replica by its name in Serve; None for one that lives, or did a minute ago, and does not answer."""
        now = time.monotonic()
        self._seen |= dict.fromkeys(await self._living(), now)
        self._seen = {name: at for name, at in self._seen.items() if now - at < FORGET_SECONDS}
        if not self._seen:
            return {}
        answers: dict[str, list[Sample]] = {}
        # A handle that meets trouble is made anew at the next scrape; the replicas that it would have reached are told as down.
        try:
            answers = await asyncio.wait_for(self._broadcast(), 2 * ANSWER_SECONDS)
        except Exception:
            self._handle = None
        self._seen |= dict.fromkeys(answers, now)
        return {name: answers.get(name) for name in self._seen}

    async def _living(self) -> set[str]:
        """The other replicas that Ray knows; those of the last time when it does not tell."""
        if self._listing is None:
            self._listing = asyncio.create_task(asyncio.to_thread(_named, f"SERVE_REPLICA::{self._app}#{self._deployment}#"))
        done, _ = await asyncio.wait({self._listing}, timeout=ANSWER_SECONDS)
        if not done:  # the control store is away; its answer may still come
            return set()
        listing, self._listing = self._listing, None
        return set() if listing.exception() else listing.result() - {self._own}

    async def _broadcast(self) -> dict[str, list[Sample]]:
        from ray import serve
        from ray.serve.exceptions import DeploymentUnavailableError

        if self._handle is None:
            self._handle = serve.get_deployment_handle(self._deployment, self._app)
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                # Serve's own `results_async` gives all answers or none, so one hung replica would hide the others.
                sent = await self._handle.broadcast("samples")._fetch_replica_results_async()
                break
            except DeploymentUnavailableError:  # a new handle has not heard of any replica yet
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.05)
        asked = [asyncio.ensure_future(result.get_async()) for result in sent]
        done, late = await asyncio.wait(asked, timeout=ANSWER_SECONDS)
        for task in late:
            task.cancel()
        answers: dict[str, list[Sample]] = {}
        for task in done:
            with suppress(Exception):  # it died meanwhile
                name, samples = task.result()
                answers[name] = [(metric, dict(labels), value) for metric, labels, value in samples]
        answers.pop(self._own, None)
        return answers


def _named(prefix: str) -> set[str]:
    from ray.util import list_named_actors

    names = [str(actor["name"]) for actor in list_named_actors(all_namespaces=True)]
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
