"""The SQL database, SQLite or PostgreSQL: how it is reached, and what it says turned into our errors. No password is ever in a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ct.errors import InvalidSettings, Unavailable

BUSY_SECONDS = 30
"""How long a statement waits for others who hold what it needs."""

_POSTGRES = {
    "connect_timeout": "5",
    "tcp_user_timeout": "30000",
    # A server that vanishes after it took a question would be waited for for two hours otherwise: it is asked every 5 s whether it lives.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "options": f"-c lock_timeout={BUSY_SECONDS}s -c idle_in_transaction_session_timeout=60s",
}


def reach(url: str) -> str:
    """`url` with the limits and the driver that `ct` needs, for SQLAlchemy. Raises InvalidSettings for another kind of database."""
    try:
        found = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InvalidSettings("the database's URL cannot be read", "postgresql://user@host/name", "mend database_url") from None
    kind = found.get_backend_name()
    if kind == "sqlite":
        if found.database:
            Path(found.database).parent.mkdir(parents=True, exist_ok=True)
        return _text(found.update_query_dict({"timeout": str(BUSY_SECONDS)}))
    if kind in ("postgresql", "postgres"):
        missing = {name: value for name, value in _POSTGRES.items() if name not in found.query}
        return _text(found.set(drivername="postgresql+psycopg").update_query_dict(missing))
    raise InvalidSettings(f"a database of kind {kind!r}", "sqlite or postgresql", "mend database_url")


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


def engine(url: str) -> sa.Engine:
    """Connections to the database of `url`. Raises InvalidSettings when its driver is not installed."""
    with answering(url):
        return sa.create_engine(reach(url), pool_pre_ping=True)


def set_up(connection: Any, _record: Any = None) -> None:
    """What a new connection to SQLite is told: to keep what is committed through a loss of power, and to wait for others."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={1000 * BUSY_SECONDS}"):
        connection.execute(f"PRAGMA {pragma}")


def masked(url: str) -> str:
    """`url` without its password, for messages."""
    try:
        return sa.make_url(url).set(query={}).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "the database"


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Raises Unavailable for a database that cannot be reached, is busy or full; InvalidSettings when its driver is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise InvalidSettings(
            "PostgreSQL's driver is not installed", "the postgres extra", "pip install 'ct[postgres]'"
        ) from None
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0][:200]
        found = f"{masked(url)}: {said}"
        raise Unavailable(found, "a database that answers", "see that it runs and has room, then run it again") from None
