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


def engine(made: Mapping[str, bytes], folder: Path) -> Compiled:
    """What runs the version with these verified files as machine code: from the package in `folder`, which is compiled now if it is not there.

    Compiling takes a minute of one core, in a process of its own; another process that wants the same package waits for it. Raises
    Unavailable when it cannot be compiled here.
    """
    from ct.models.compiling import Compiled, machine

    about = {"files": {name: sha256(made[name]) for name in sorted(files.REQUIRED)}, "machine": machine()}
    name = sha256(canonical(about))
    _own(folder)
    with _alone(folder / f"{name}.lock"):
        package = folder / f"{name}.pt2"
        if not _whole(package):
            _compile(made, package)
        os.utime(package)
    try:
        return Compiled.load(package)
    except (RuntimeError, OSError) as error:
        package.unlink(missing_ok=True)
        raise Unavailable(
            f"its machine code cannot be loaded: {_line(str(error))}", "code of this machine", "stage it again"
        ) from None


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
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise Unavailable(f"there is no C++ compiler {compiler!r} here", "g++, or another that CXX names", "install g++")
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=package.parent) as name:
        work = Path(name)
        for file in files.REQUIRED:
            (work / file).write_bytes(made[file])
        # Inductor's own cache would be shared by all that runs on this machine.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "ct.models.compiling", str(work)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=COMPILE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"it cannot be compiled: {_line(str(error))}", "machine code", "see the message") from None
        made_here = work / "model.pt2"
        if done.returncode or not made_here.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            raise Unavailable(
                f"it cannot be compiled: {said[0][:300]}", "a module that AOTInductor can compile", "see the message"
            )
        package.with_suffix(".sha256").write_text(sha256_file(made_here))
        os.replace(made_here, package)
    _trim(package.parent)


def _trim(folder: Path) -> None:
    for package in folder.glob("*.pt2"):
        with suppress(OSError):
            if time.time() - package.stat().st_mtime > UNUSED_SECONDS:
                for left in (package, package.with_suffix(".sha256"), package.with_suffix(".lock")):
                    left.unlink(missing_ok=True)


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
