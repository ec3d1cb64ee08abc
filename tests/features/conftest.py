"""Lets the tests of this folder import their `worlds`, and gives them online stores on a file and on a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ct.features.online import OnlineStore
from ct.features.online.sqlite import SqliteShelf

sys.path.insert(0, str(Path(__file__).parent))


Open = Callable[[], OnlineStore]


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens stores that share their rows; closed in the end."""
    made: list[OnlineStore] = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    def new() -> OnlineStore:
        if url:
            from ct.features.online.redis import RedisShelf

            made.append(OnlineStore(RedisShelf(url)))
        else:
            made.append(OnlineStore(SqliteShelf(tmp_path / "online.db")))
        return made[-1]

    yield new
    for store in made:
        store.close()


@pytest.fixture
def store(opened: Open) -> OnlineStore:
    """A store, on a file and on a server."""
    return opened()
