"""The code that a version carries: an archive of the user's files in one spelling, and its pipeline loaded apart from all other code.

Only an archive out of a verified set may be loaded: what it holds is executed. Which files go into one is `training/code.py`'s matter.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import io
import json
import re
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ct.errors import Corrupt, CtError, InvalidPipeline
from ct.ids import canonical
from ct.pipeline import Pipeline

MOST_BYTES = 8 << 20
_ABOUT = "code.json"
_FORMAT = 1
_NAME = re.compile(r"\d+(/[^/\\:\x00]+)+\.py")
_MOMENT = (1980, 1, 1, 0, 0, 0)
_ALONE = threading.RLock()


@dataclass(frozen=True)
class Code:
    """A user's files. A name is the number of its source folder, then its path below that folder: `0/flights.py`.

    `main` is the pipeline file's name, "" where the pipeline came from none; `variable` what the pipeline is called in it.
    """

    files: Mapping[str, bytes]
    main: str = ""
    variable: str = "pipeline"

    def to_bytes(self) -> bytes:
        """The archive: a zip without compression, times and order, so that equal files give equal bytes anywhere. Raises InvalidPipeline when too large."""
        size = sum(map(len, self.files.values()))
        if size > MOST_BYTES:
            raise InvalidPipeline(
                f"the pipeline's code has {size:,} bytes", f"{MOST_BYTES:,} at most", "keep data out of .py files"
            )
        about = canonical({"format": _FORMAT, "main": self.main, "variable": self.variable}).encode()
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, data in sorted({**self.files, _ABOUT: about}.items()):
                entry = zipfile.ZipInfo(name, _MOMENT)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                archive.writestr(entry, data)
        return target.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Code:
        """The files of an archive. Executes nothing. Raises Corrupt for what `to_bytes` did not write."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = archive.infolist()
                if sum(entry.file_size for entry in entries) > MOST_BYTES + 4096:
                    raise ValueError("too large")
                if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                    raise ValueError("compressed or encrypted")
                files = {entry.filename: archive.read(entry) for entry in entries}
            about = json.loads(files.pop(_ABOUT))
            found = Code(files, str(about["main"]), str(about["variable"]))
            if about["format"] != _FORMAT or not all(map(_sound, files)) or (found.main and found.main not in files):
                raise ValueError("odd names")
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise Corrupt(f"the version's code cannot be read: {error}", "an archive of its own files", "train again") from None
        return found

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write the files below `folder` and return the folders to be put on sys.path."""
        for name, data in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return tuple(folder / number for number in self.numbers)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers of the source folders, in order."""
        return tuple(sorted({name.partition("/")[0] for name in self.files}, key=int))


def _sound(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not {".", ".."} & set(name.split("/"))


def loaded(data: bytes) -> Pipeline | None:
    """The pipeline of an archive, None where it has no pipeline file. Its modules see each other and nobody else sees them.

    The same archive gives the same pipeline, loaded once in each process. Raises Corrupt when its code cannot be run here.
    """
    with _ALONE:
        return _loaded(data)


def named(data: bytes, module: str, name: str) -> Any:
    """What a module of an archive, or else of an installed package, calls `name`, which may have dots. Raises Corrupt when it cannot be had here."""
    with _ALONE:
        modules = _modules(data)
        try:
            found: Any = modules.import_(module)
            for part in name.split("."):
                found = getattr(found, part)
        except Exception as error:  # a user's file may raise anything
            raise _unrunnable(error) from error
    return found


@lru_cache(maxsize=16)
def _modules(data: bytes) -> _Modules:
    return _Modules(Code.from_bytes(data))


def _unrunnable(error: Exception) -> Corrupt:
    said = error.found if isinstance(error, CtError) else f"{type(error).__name__}: {error}"
    return Corrupt(
        f"the version's code cannot be run here: {said}",
        "code that needs its own modules and installed packages only",
        "install what it needs; let it open no other files when it is imported",
    )


@lru_cache(maxsize=16)
def _loaded(data: bytes) -> Pipeline | None:
    modules = _modules(data)
    code = modules.code
    if not code.main:
        return None
    try:
        with modules.known():
            found = getattr(modules.load(Path(code.main).stem, code.main), code.variable, None)
            if isinstance(found, Pipeline):
                # Hashes of functions are taken from the files, while the modules can be found by name.
                for feature in found.features:
                    getattr(_innermost(feature), "source", None)
    except Exception as error:  # a user's file may raise anything
        raise _unrunnable(error) from error
    if not isinstance(found, Pipeline):
        raise Corrupt(f"the version's code has no ct.Pipeline called {code.variable!r}", "one", "train again")
    return found


def _innermost(feature: Any) -> Any:
    return _innermost(feature.feature) if hasattr(feature, "feature") else feature


class _Modules:
    """The modules of one archive. An import within them finds them first, now and whenever their functions are called."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self._folder = tempfile.TemporaryDirectory(prefix="ct-code-")  # functions' sources are read from files
        code.write(Path(self._folder.name))
        self._made: dict[str, ModuleType] = {}
        self._broken: list[str] = []
        self._builtins = {**vars(builtins), "__import__": self._import}

    @contextmanager
    def known(self) -> Iterator[None]:
        """While this lasts, sys.modules has these modules under their names; then what was there before is there again."""
        with _ALONE:
            before = dict(sys.modules)
            sys.modules.update(self._made)
            try:
                yield
            finally:
                for name in (*self._made, *self._broken):
                    if name in before:
                        sys.modules[name] = before[name]
                    else:
                        sys.modules.pop(name, None)
                self._broken.clear()

    def import_(self, name: str) -> ModuleType:
        """The module of that dotted name: of the archive, or else of what is installed. Raises what the import raises."""
        if not self._has(name.partition(".")[0]):
            return importlib.import_module(name)
        with self.known():
            return self.load(name)

    def load(self, name: str, main: str = "") -> ModuleType:
        """The module of that dotted name, or of the file `main`, run once. Raises ImportError when the archive has none."""
        if name in self._made:
            return self._made[name]
        parent, _, last = ("", "", name) if main else name.rpartition(".")
        above = self.load(parent) if parent else None
        if name in self._made:  # its package has imported it
            return self._made[name]
        file, package = (main, False) if main else self._file(name)
        module = ModuleType(name)
        module.__dict__["__builtins__"] = self._builtins
        module.__package__ = name if package else parent
        path = Path(self._folder.name) / (file or "")
        if package:
            module.__path__ = [str(path.parent)]
        if file:
            module.__file__ = str(path)
        module.__dict__["_ct_modules"] = self  # who hashes a function's source needs `known`; and so the files stay
        self._made[name] = sys.modules[name] = module
        if file:
            try:
                exec(compile(self.code.files[file], str(path), "exec"), module.__dict__)
            except BaseException:  # half of a module is nobody's to go on with
                del self._made[name]
                self._broken.append(name)
                raise
        if above is not None:
            setattr(above, last, module)
        return module

    def _file(self, name: str) -> tuple[str, bool]:
        """A module's file, and whether it is a package; a folder without __init__.py is a package without a file."""
        path = name.replace(".", "/")
        for number in self.code.numbers:
            for file, package in ((f"{number}/{path}/__init__.py", True), (f"{number}/{path}.py", False)):
                if file in self.code.files:
                    return file, package
        if any(file.partition("/")[2].startswith(f"{path}/") for file in self.code.files):
            return "", True
        raise ModuleNotFoundError(f"the version's code has no module {name!r}", name=name)

    def _has(self, name: str) -> bool:
        try:
            self._file(name)
        except ModuleNotFoundError:
            return False
        return True

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> ModuleType:
        whole = name
        if level:
            whole = importlib.util.resolve_name("." * level + name, str((globals or {}).get("__package__") or ""))
        if not self._has(whole.partition(".")[0]):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if whole in self._made and all(item == "*" or hasattr(self._made[whole], item) for item in fromlist or ()):
            return self._made[whole] if fromlist or level else self._made[whole.partition(".")[0]]
        with self.known():
            module = self.load(whole)
            for item in fromlist or ():
                if item != "*" and not hasattr(module, item) and self._has(f"{whole}.{item}"):
                    self.load(f"{whole}.{item}")
        return module if fromlist or level else self._made[whole.partition(".")[0]]
