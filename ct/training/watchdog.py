"""Finds workers that hang: each beats into a file of its own while it trains, and who waits for the run ends those that do not.

Times are taken only by the one who watches, from when a file's content last changed: clocks of two machines are never compared.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_S = 0.5
STUCK = 20
"""A group that beats but makes no step for so many times the limit for beats is ended as well."""


@dataclass
class Beat:
    """A worker's sign of life. `born` is its process's start in clock ticks, so that a process number used again is not taken for it."""

    rank: int
    pid: int
    node: str
    born: str
    count: int = 0
    step: int = 0


@contextmanager
def beating(folder: str, rank: int) -> Iterator[Beat]:
    """Beat into `folder` (empty: nowhere) until the block is left. The block sets `step`."""
    beat = Beat(rank, os.getpid(), _node(), _born(os.getpid()))
    if not folder:
        yield beat
        return
    over = threading.Event()
    path = Path(folder) / f"{rank:04}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=_beat, args=(beat, path, over), name="beat", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _beat(beat: Beat, path: Path, over: threading.Event) -> None:
    part = path.with_name(f".{path.name}-{beat.pid}")
    while True:
        beat.count += 1
        try:
            part.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            os.replace(part, path)
        except OSError:  # a disk that fails for a moment; one that fails for long looks like a hang, and is one
            pass
        if over.wait(BEAT_S):
            return


class Watch:
    """Looks at the beats below `folder` and ends the process of each worker that has not beaten for `limit_s` seconds."""

    def __init__(
        self,
        folder: Path,
        limit_s: float,
        note: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
        end: Callable[[Beat], bool] | None = None,
    ) -> None:
        self._folder, self._limit, self._note, self._now = folder, limit_s, note, now
        self._end = end or end_process
        self._beats: dict[str, tuple[Beat, float]] = {}
        self._steps: tuple[list[int], float] = ([], now())
        self._looked = -BEAT_S

    def look(self) -> None:
        """One look, to be repeated more often than `limit_s`. Between two beats it does nothing."""
        now = self._now()
        if now - self._looked < BEAT_S:
            return
        if now - self._looked > self._limit / 2:  # who watches was stopped, or the whole machine: nobody is to blame
            self._beats, self._steps = {}, ([], now)
        self._looked = now
        found = dict(self._read())
        self._beats = {
            name: self._beats[name] if name in self._beats and self._beats[name][0] == beat else (beat, now)
            for name, beat in found.items()
        }
        steps = [beat.step for beat in found.values()]
        if steps != self._steps[0] or not steps:
            self._steps = (steps, now)
        stuck = now - self._steps[1] >= STUCK * self._limit
        for name, (beat, since) in list(self._beats.items()):
            if stuck or now - since >= self._limit:
                why = f"made no step for {STUCK * self._limit:g} s" if stuck else f"gave no sign of life for {self._limit:g} s"
                (self._folder / name).unlink(missing_ok=True)
                if self._end(beat):
                    self._note(
                        f"worker {beat.rank} {why} at step {beat.step} and was ended; training goes on from its checkpoint"
                    )

    def _read(self) -> Iterator[tuple[str, Beat]]:
        for path in sorted(self._folder.glob("[!.]*.json")):
            try:
                yield path.name, Beat(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):  # it has just ended
                continue


def end_process(beat: Beat) -> bool:
    """Kill a worker's process on its machine. False when it had ended already."""
    if beat.node in ("", _node()):
        return _kill(beat.pid, beat.born)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    try:
        killed = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(beat.pid, beat.born)
        return bool(ray.get(killed, timeout=60))
    except ray.exceptions.RayError:  # the machine is gone, and the worker with it
        return False


def _kill(pid: int, born: str) -> bool:
    if _born(pid) != born:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _born(pid: int) -> str:
    """When a process started, "" where the system does not tell or it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _node() -> str:
    """This machine's name in Ray, "" without Ray."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""
