"""Servers for tests, each in a temporary folder and on a free port of this machine: PostgreSQL, Redis, and moto's S3 API. Imported by conftest files."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from ct.serving.local import free_port

WAIT_SECONDS = 60
USERS = ("postgres", "nobody")


def _program(name: str) -> str:
    """The newest PostgreSQL program of that name. Skips the test when there is none."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]), reverse=True)
    found = str(installed[0]) if installed else shutil.which(name)
    if not found:
        pytest.skip(f"PostgreSQL's {name} is not on this machine: apt-get install postgresql")
    return found


def _as_user() -> tuple[list[str], str | None]:
    """How a command is run that refuses to be root's, and by whom; nothing needed where the tests are not root's."""
    if os.geteuid() != 0:
        return [], None
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in USERS if name in known), None)
    if user is None or not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
    return ["runuser", "-u", user, "--"], user


@dataclass
class Postgres:
    """A PostgreSQL server that can be stopped, killed and started again. Its data stay."""

    folder: Path
    port: int
    prefix: Sequence[str] = ()
    databases: list[str] = field(default_factory=list)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, cwd=self.folder, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c max_connections=60"
        log = str(self.folder / "log")
        self._run(_program("pg_ctl"), "-D", self._data, "-o", options, "-l", log, "-w", "-t", str(WAIT_SECONDS), "start")

    def stop(self, how: str = "fast") -> None:
        """Stop it: "fast" breaks connections, "immediate" is as a crash."""
        self._run(_program("pg_ctl"), "-D", self._data, "-m", how, "-w", "-t", str(WAIT_SECONDS), "stop")

    def new(self) -> str:
        """The URL of a fresh, empty database."""
        import psycopg

        name = f"ct_{uuid4().hex[:12]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        self.databases.append(name)
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://ct:secret-of-the-tests@127.0.0.1:{self.port}/{name}"


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A fresh server, gone in the end."""
    pytest.importorskip("psycopg")
    initdb = _program("initdb")
    prefix, user = _as_user()
    # Directly below /tmp: another user must reach it, and its socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="ct-pg-", dir="/tmp"))
    try:
        secret = folder / "secret"
        secret.write_text("secret-of-the-tests\n")
        if user:
            for path in (folder, secret):
                shutil.chown(path, user)
        server = Postgres(folder, free_port(), prefix)
        auth = ["-A", "scram-sha-256", "-U", "ct", f"--pwfile={secret}"]
        server._run(initdb, "-D", str(folder / "data"), "-N", "-E", "UTF8", "--locale=C", *auth)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3:
    """An S3 API of this machine. `environment` is what a process needs to use it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new(self) -> str:
        """The URI of a fresh, empty place: a bucket and a prefix."""
        bucket = f"ct-{uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS):
            return f"s3://{bucket}/project"


@contextmanager
def s3_server() -> Iterator[S3]:
    """A fresh server, gone in the end. What it keeps is in its memory."""
    pytest.importorskip("moto")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while True:
            assert server.poll() is None, "moto's server ended"
            assert time.monotonic() - begun < WAIT_SECONDS, "moto's server does not answer"
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                time.sleep(0.05)
        yield S3(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests of a run; `postgres.new()` is a database of one's own."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_shared() -> Iterator[S3]:
    """One S3 API for all tests of a run."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_shared: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 API, with the environment set to use it; `s3.new()` is a place of one's own."""
    for name, value in s3_shared.environment.items():
        monkeypatch.setenv(name, value)
    return s3_shared


@contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a fresh Redis server that keeps nothing on disk, gone in the end. Skips the test where Redis is not installed."""
    with tempfile.TemporaryDirectory(
        prefix="ct-redis-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # a socket's path must be short
        url = f"unix://{folder}/socket"
        with _redis(url, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder):
            yield url


@contextmanager
def redis_with_password() -> Iterator[tuple[str, str]]:
    """The address of a Redis server on a port of this machine and the password that it asks for; else as `redis_server`."""
    with tempfile.TemporaryDirectory(prefix="ct-redis-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        address, password = f"127.0.0.1:{free_port()}", uuid4().hex
        config = Path(folder) / "redis.conf"  # a password in the command would be told to whoever lists processes
        config.write_text(f"bind 127.0.0.1\nport {address.rpartition(':')[2]}\nrequirepass {password}\n")
        with _redis(f"redis://:{password}@{address}", str(config), "--dir", folder):
            yield address, password


@contextmanager
def _redis(url: str, *words: str) -> Iterator[None]:
    redis = pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on this machine: apt-get install redis-server")
    server = subprocess.Popen([program, *words, "--save", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while True:
            try:
                redis.Redis.from_url(url).ping()
                break
            except redis.RedisError:
                assert server.poll() is None, "redis-server ended"
                assert time.monotonic() - begun < WAIT_SECONDS, "redis-server does not answer"
                time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def redis_shared() -> Iterator[str]:
    """One Redis server for all tests of a run."""
    with redis_server() as url:
        yield url


@pytest.fixture
def redis_url(redis_shared: str) -> str:
    """The Redis server's URL; it is empty."""
    import redis

    redis.Redis.from_url(redis_shared).flushall()
    return redis_shared
