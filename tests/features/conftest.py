"""Lets the tests of this folder import their `worlds`, and gives them a Redis server and stores of both kinds."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ct.features.online import OnlineStore
from ct.features.online.sqlite import SqliteShelf

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis server on a socket of its own, without persistence."""
    pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on this machine: apt-get install redis-server")
    folder = tempfile.mkdtemp(prefix="ct-redis-", dir="/tmp")  # a socket's path must be short
    socket = f"{folder}/socket"
    command = [program, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import redis

        for _ in range(600):
            try:
                redis.Redis(unix_socket_path=socket).ping()
                break
            except redis.RedisError:
                assert server.poll() is None, "redis-server ended"
                time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The server, emptied."""
    import redis

    redis.Redis.from_url(redis_server).flushall()
    return redis_server


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
