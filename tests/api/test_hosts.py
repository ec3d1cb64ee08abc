"""The control API on loopback answers its own names only: a page in a browser whose name was made to point there steers nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ct import settings
from ct.api.application import build
from ct.serving.access import hosts
from ct.store.journal import Journal


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8100", 200),
        ("127.0.0.1", "localhost:8100", 200),
        ("127.0.0.1", "evil.example:8100", 421),
        ("127.0.0.1", "[::1]:8100", 200),
        ("0.0.0.0", "anything.example", 200),
    ],
)
def test_a_name_made_to_point_here_is_not_answered(tmp_path: Path, bound: str, host: str, status: int) -> None:
    place = settings.load(tmp_path, environ={})
    act: Any = SimpleNamespace(pipeline=SimpleNamespace(name="tiny"), settings=place, journal=Journal(place.database))

    async def ask() -> int:
        transport = httpx.ASGITransport(app=build(act, hosts=hosts(place, bound)))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.get("/healthz")).status_code

    assert asyncio.run(ask()) == status
