"""Which files are a pipeline's code: its file, the model's module, and the modules beside them that these import. Reads, and runs nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ct
from ct.ids import canonical, sha256, sha256_file
from ct.registry.code import Code

if TYPE_CHECKING:
    from ct.training.declare import Torch

_MADE_FROM = "__ct_made_from__"


def code_of(model: Any, file: Path | None = None, variable: str = "") -> Code:
    """The code of a pipeline: of its `file` (where it came from one), of the modules that define `model`, and what they import.

    Only .py files below the folders that these are imported from, of this user: no installed packages, nothing of `ct`, nothing that
    is not imported by a statement.
    """
    found = _Found()
    if file is not None:
        found.add(file.resolve(), file.resolve().parent)
    for part in getattr(model, "members", ()):
        home = part.module_class
        if users(Path(inspect.getfile(home)).resolve(), str(home.__module__)):
            found.add(Path(inspect.getfile(home)).resolve(), source_folder(home))
    found.follow()
    return Code(found.named(), found.name(file.resolve()) if file is not None else "", variable or "pipeline")


@cache
def own_digest() -> str:
    """SHA-256 over ct's own source. The contract names torch and the processor; which ct computed is another thing that bytes depend on."""
    home = Path(ct.__file__).parent
    return sha256(canonical({str(file.relative_to(home)): sha256_file(file) for file in sorted(home.rglob("*.py"))}))


def home_of(pipeline: Any) -> tuple[Path, str] | None:
    """The file that assigns a pipeline to a name of its module, and that name; None for one that no module holds."""
    for module in list(sys.modules.values()):
        names = [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is pipeline]
        file = Path(getattr(module, "__file__", None) or "/").resolve()
        if not names or not file.is_file() or not users(file, module.__name__):
            continue
        for node in ast.parse(file.read_bytes()).body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id in names:
                    return file, target.id
    return None


def code_digest(model: Torch) -> str:
    """SHA-256 of the archive of the module that defines the model, and of what it imports beside it."""
    return sha256(code_of(model).to_bytes())


def remember_modules() -> None:
    """Note of each of the user's modules in this process, in the module, from which bytes it was made. To be called when it is imported."""
    for name, module in list(sys.modules.items()):
        held = getattr(module, "__dict__", {})
        file, top = held.get("__file__"), name.partition(".")[0]
        known = (
            top in ("ct", "__main__") or top in sys.stdlib_module_names or _MADE_FROM in held
        )  # most are, and asking a disk takes long
        if not known and file and "-packages" not in file and users(Path(file).resolve(), name):
            held[_MADE_FROM] = sha256(Path(file).read_bytes())


def forget_changed_modules() -> None:
    """Where a file of the user's modules is no longer what this process imported, drop them all: the next import reads what is there now.

    For a process that outlives a change of the user's code, and holds nothing of it but these modules.
    """
    noted = {
        name: held for name, module in list(sys.modules.items()) if _MADE_FROM in (held := getattr(module, "__dict__", {}))
    }
    files = {Path(held["__file__"]): held[_MADE_FROM] for held in noted.values()}
    if any(file.is_file() and sha256(file.read_bytes()) != before for file, before in files.items()):
        for name in noted:
            del sys.modules[name]
        importlib.invalidate_caches()


def source_folder(model: Any) -> Path:
    """The folder from which the model's top-level module is imported."""
    file = Path(inspect.getfile(model)).resolve()
    depth = str(model.__module__).count(".")
    return file.parents[depth]


class _Found:
    """Files by the folder they are imported from, as they are found."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._files: dict[Path, tuple[int, bytes]] = {}
        self._waiting: list[Path] = []

    def add(self, file: Path, folder: Path) -> None:
        if file in self._files or not file.is_relative_to(folder):
            return
        if folder not in self._folders:
            self._folders.append(folder)
        self._files[file] = (self._folders.index(folder), file.read_bytes())
        self._waiting.append(file)

    def follow(self) -> None:
        """Add what the files import, until nothing is new."""
        while self._waiting:
            file = self._waiting.pop(0)
            folder = self._folders[self._files[file][0]]
            package = file.relative_to(folder).parent.parts
            for name in _imports(self._files[file][1], package):
                self._import(name)

    def name(self, file: Path) -> str:
        """A file's name in the archive."""
        number, _ = self._files[file]
        return f"{number}/{file.relative_to(self._folders[number]).as_posix()}"

    def named(self) -> dict[str, bytes]:
        """All files by their names."""
        return {self.name(file): data for file, (_, data) in self._files.items()}

    def _import(self, name: str) -> None:
        """The files of a dotted name: of its packages, and of itself where it is a module."""
        parts = name.split(".")
        for folder in self._places(parts[0]):
            for at in range(len(parts)):
                path = folder.joinpath(*parts[: at + 1])
                for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
                    if file.is_file() and file.resolve().is_relative_to(folder):
                        self.add(file, folder)

    def _places(self, top: str) -> Iterator[Path]:
        """The folder that a top-level name is imported from, if it is the user's."""
        if top == "ct":
            return
        for folder in self._folders:
            if (folder / top).is_dir() or (folder / f"{top}.py").is_file():
                yield folder
                return
        file = getattr(sys.modules.get(top), "__file__", None)
        if file and users(path := Path(file).resolve(), top):
            yield path.parent.parent if path.name == "__init__.py" else path.parent


def users(file: Path, module: str) -> bool:
    """Is a module's file the user's own: neither of `ct` nor of Python nor an installed package?"""
    top = module.partition(".")[0]
    if top == "ct" or top in sys.stdlib_module_names or file.suffix != ".py":
        return top == "__main__" and file.suffix == ".py"
    if {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not any(
        file.is_relative_to(Path(path).resolve()) for name, path in sysconfig.get_paths().items() if "stdlib" in name
    )


def _imports(source: bytes, package: tuple[str, ...]) -> Iterator[str]:
    """The dotted names that a file may import, wherever in it the statement stands; `package` are the folders it lies in."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # a file of its own that is never run, or Python has said it already
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ([base] if base else [])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names if alias.name != "*")
