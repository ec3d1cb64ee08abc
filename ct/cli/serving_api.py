"""`ct api`: serve the control API."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Annotated

import typer

from ct.cli import output
from ct.cli.place import PipelineFile, Root, actor


def api(
    root: Root = None,
    pipeline: PipelineFile = None,
    host: Annotated[str, typer.Option(help="Where it listens; beyond loopback it asks for tokens and TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8100,
) -> None:
    """Serve the control API: what `ct rollout` and `ct flag` do, over HTTP."""
    with output.errors(), actor(root, pipeline) as act:
        from ct.api import listening
        from ct.api.application import build
        from ct.api.hands import Hands
        from ct.governance import binds
        from ct.serving.access import hosts

        binds.check(act.settings, host, act.journal, what="the control API")
        certificate = binds.tls(act.settings)
        listener = listening.bound(host, port)
        output.line(f"the control API listens on {'https' if certificate else 'http'}://{host}:{port}")
        hands = Hands(act.settings, act.pipeline.name)
        made = build(act, closed=not binds.loopback(host), hosts=hosts(act.settings, host), join=hands.joined)
        with closing(hands), suppress(KeyboardInterrupt):
            listening.server(made, **certificate).run(sockets=[listener])
