"""A prefix of an object store (S3 API) as a source: every object is a shard, fetched whole before anything looks into it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from ct.errors import Conflict, InvalidPipeline, InvalidRequest, InvalidShard
from ct.ids import sha256
from ct.roles import Arrival, Cursor
from ct.store.files import Entry, Files, open_input

_PIECE = 1 << 23
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")


@dataclass(frozen=True)
class ObjectStore:
    """The objects below `uri`, s3://bucket/prefix. Credentials and the endpoint come from the AWS_ variables of the environment.

    An object is known by its key, size and time of change: one that is overwritten is new, one that is overwritten while it is fetched
    is left for the next look. Keys with a part that begins with "." or "_" are not taken (Spark's and Hadoop's marks). An object of
    more than `max_bytes` is refused once, with an alert. A look that finds something waits `settle` seconds: a store's times of change
    have the resolution of a second, and what changes after that second has another time.
    """

    uri: str
    max_bytes: int = 4 << 30
    settle: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"s3://[A-Za-z0-9._-]+(/.*)?", self.uri):
            raise InvalidPipeline(f"ObjectStore({self.uri!r})", "s3://bucket/prefix", "name bucket and prefix, no credentials")

    @classmethod
    def example(cls) -> ObjectStore:
        """One of its kind."""
        return cls("s3://shop/orders")

    def explain(self) -> str:
        """The prefix."""
        return f"objects {self.uri}"

    def pending(self, cursor: Cursor) -> tuple[Arrival, ...]:
        """The objects that are new or have changed, oldest first. Raises Unavailable."""
        found = [
            entry for entry in Files(self.uri).list() if not any(part[0] in "._" for part in entry.name.split("/") if part)
        ]
        arrivals = [self._arrival(entry) for entry in sorted(found, key=lambda entry: (entry.changed, entry.name))]
        fresh = tuple(arrival for arrival in arrivals if cursor.taken.get(arrival.key) != arrival.position)
        if fresh:
            time.sleep(self.settle)
        return fresh

    def _arrival(self, entry: Entry) -> Arrival:
        mark, refused = f"{entry.size} bytes of {entry.changed:.6f}", ""
        if entry.size > self.max_bytes:
            # The limit is part of the mark, so that a higher one takes the object after all.
            mark, refused = (
                f"{mark}, over {self.max_bytes}",
                f"{entry.size:,} bytes, over the source's limit of {self.max_bytes:,}",
            )
        return Arrival(file_name(entry.name), mark, entry.size, Files(self.uri).address(entry.name), refused=refused)

    def fetch(self, arrival: Arrival, cursor: Cursor, folder: Path) -> Path:
        """The object's bytes in `folder`. Raises Conflict when it was overwritten meanwhile, NotFound or Unavailable."""
        target = folder / arrival.name
        with open_input(arrival.key) as source, target.open("wb") as file:
            before = _identity(source)
            self._copy(source, file, arrival)
        with open_input(arrival.key) as source:
            after = _identity(source)
        if before != after or target.stat().st_size != before[0]:
            raise Conflict(
                f"{arrival.key} was overwritten while it was fetched", "an object that stands still", "look again later"
            )
        return target

    def _copy(self, source: pa.NativeFile, file: BinaryIO, arrival: Arrival) -> None:
        size = 0
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > self.max_bytes:  # it has grown since it was listed
                raise InvalidShard(
                    f"{arrival.key} has over {self.max_bytes:,} bytes", "a smaller object", "raise max_bytes or split it"
                )
            file.write(piece)

    def locate(self, text: str, cursor: Cursor) -> str:
        """Raises InvalidRequest: objects have no order."""
        raise InvalidRequest(
            f"{self.explain()} have no position {text!r}", "a table with snapshots or versions", "move objects away"
        )


def file_name(key: str) -> str:
    """A file name for a key below the prefix: the key itself where it is plain, else its letters and a hash, so that no two are alike."""
    if _SAFE.fullmatch(key):
        return key
    path = PurePosixPath(key)
    suffix = path.suffix if _SAFE.fullmatch(path.suffix.lstrip(".") or "-") and len(path.suffix) <= 10 else ""
    stem = re.sub(r"[^A-Za-z0-9=+_]+", "-", key.removesuffix(suffix)).strip("-_")[-60:]
    return f"{stem or 'object'}-{sha256(key)[:12]}{suffix}"


def _identity(source: pa.NativeFile) -> tuple[int, object]:
    """Size, and the ETag or where a store has none the time of change."""
    said = source.metadata()
    return source.size(), said.get("ETag") or said.get("Last-Modified")
