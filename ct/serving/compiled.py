"""Machine code of verified versions, compiled on this node and kept on its disk. Nothing that was compiled elsewhere is ever loaded.

A package is named by the digests of the version's files, by torch, and by this processor's instructions.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ct.errors import Unavailable
from ct.ids import canonical, sha256, sha256_file
from ct.registry import files

if TYPE_CHECKING:
    from ct.models.compiling import Compiled

COMPILE_SECONDS = 600.0
UNUSED_SECONDS = 30 * 86400.0
"""A package that nobody loaded for so long is removed."""
FAULT_SECONDS = 86400.0
"""So long a module that could not be compiled is not tried again."""
_WORK = "compiling-"


def engine(made: Mapping[str, bytes], folder: Path) -> Compiled:
    """What runs the version with these verified files as machine code, see `packaged`. Raises Unavailable when there can be none here."""
    from ct.models.compiling import Compiled

    package = packaged(made, folder)
    try:
        return Compiled.load(package)
    except (RuntimeError, OSError) as error:
        package.unlink(missing_ok=True)
        raise Unavailable(
            f"its machine code cannot be loaded: {_line(str(error))}", "code of this machine", "stage it again"
        ) from None


def packaged(made: Mapping[str, bytes], folder: Path) -> Path:
    """The package in `folder` of the version with these verified files, which is compiled now if it is not there.

    Compiling takes a minute of one core, in a process of its own; another process that wants the same package waits for it. Raises
    Unavailable when it cannot be compiled here.
    """
    from ct.models.compiling import machine

    about = {"files": {name: sha256(made[name]) for name in sorted(files.REQUIRED)}, "machine": machine()}
    name = sha256(canonical(about))
    _own(folder)
    with _alone(folder / f"{name}.lock"):
        package = folder / f"{name}.pt2"
        if not _whole(package):
            _compile(made, package)
        os.utime(package)
    return package


def _own(folder: Path) -> None:
    """Make `folder` one that only this user can write to: what lies there will be run. Raises Unavailable when it is another's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Unavailable(
            f"others may write to {folder}", "a folder of this user's alone, for what lies there is run", f"chmod 700 {folder}"
        )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _whole(package: Path) -> bool:
    """Is it there with the bytes that were written?"""
    try:
        return package.with_suffix(".sha256").read_text() == sha256_file(package)
    except OSError:
        return False


def _compile(made: Mapping[str, bytes], package: Path) -> None:
    compiler, fault = os.environ.get("CXX") or "g++", package.with_suffix(".fault")
    if shutil.which(compiler) is None:
        raise Unavailable(f"there is no C++ compiler {compiler!r} here", "g++, or another that CXX names", "install g++")
    if fault.is_file() and time.time() - fault.stat().st_mtime < FAULT_SECONDS:
        raise Unavailable(
            fault.read_text(), "a module that AOTInductor can compile", f"see the message; remove {fault} to try again"
        )
    _trim(package.parent)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=package.parent) as name:
        work = Path(name)
        for file in files.REQUIRED:
            (work / file).write_bytes(made[file])
        if said := _run(work, package.name):
            if "InvalidCxxCompiler" not in said:  # that is the machine's fault, and found out quickly
                fault.write_text(f"it cannot be compiled: {said}")
            raise Unavailable(f"it cannot be compiled: {said}", "a module that AOTInductor can compile", "see the message")
        package.with_suffix(".sha256").write_text(sha256_file(work / package.name))
        os.replace(work / package.name, package)


def _run(work: Path, package: str) -> str:
    """The process that compiles what lies in `work`. Returns what was wrong, "" for nothing."""
    # Inductor's own cache would be shared by all that runs on this machine.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "ct.models.compiling", str(work), package]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _line(str(error))
    if done.returncode == 0 and (work / package).is_file():
        return ""
    return _line((done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"])[-1])


def _trim(folder: Path) -> None:
    """Remove what nobody uses any more, and what a process left that was killed while it compiled."""
    now = time.time()
    for found in folder.iterdir():
        with suppress(OSError):
            age = now - found.stat().st_mtime
            if found.is_dir() and found.name.startswith(_WORK) and age > 2 * COMPILE_SECONDS:
                shutil.rmtree(found)
            elif found.suffix == ".pt2" and age > UNUSED_SECONDS:
                for left in (found, found.with_suffix(".sha256"), found.with_suffix(".fault")):
                    left.unlink(missing_ok=True)


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
