"""The house rules that a machine can judge."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = sorted(path for folder in ("ct", "jobs", "examples", "bench") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
VAGUE_FILES = {"utils", "util", "common", "misc", "helpers", "helper", "base", "core", "manager", "handlers"}
VAGUE_CLASS = re.compile(r"(Manager|Handler|Helper|Processor|Util|Utils)$")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*OURS, *TESTS], ids=_name)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{_name(path)} has {lines} lines: split it where it stops being one idea"


@pytest.mark.parametrize("path", OURS, ids=_name)
def test_each_file_says_what_lives_in_it(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.stem not in VAGUE_FILES, f"{_name(path)}: name the file after what it holds"
    assert ast.get_docstring(tree), f"{_name(path)} does not open with a docstring"
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if VAGUE_CLASS.search(name)], f"{_name(path)}: name the class after what it is"


@pytest.mark.parametrize("path", [path for path in OURS if path.parts[-2] != "bench"], ids=_name)
def test_functions_are_short(path: Path) -> None:
    long = {
        node.name: length
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert not long, f"{_name(path)}: {long} want splitting"


@pytest.mark.parametrize("path", [path for path in OURS if path.stem != "__main__" and path.parts[-2] != "bench"], ids=_name)
def test_no_work_at_import(path: Path) -> None:
    """Modules hold imports, definitions, constants and TYPE_CHECKING blocks; calls that do something wait for a function."""
    allowed = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(path.read_text()).body:
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and "app" in ast.unparse(node.value.func)
        registering = isinstance(node, ast.For) and "command" in ast.unparse(node)
        assert isinstance(node, allowed) or guarded or text or call or registering, (
            f"{_name(path)}:{node.lineno} does something at import: {ast.unparse(node)[:80]}"
        )


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    return [node for node in named if "overload" not in map(ast.unparse, node.decorator_list)]


@pytest.mark.parametrize("path", sorted((ROOT / "ct").rglob("*.py")), ids=_name)
def test_what_is_public_is_documented(path: Path) -> None:
    bare = [node.name for node in _public(ast.parse(path.read_text())) if not ast.get_docstring(node)]
    assert not bare, f"{_name(path)}: {bare} lack a docstring"


def test_importing_ct_loads_neither_ray_nor_torch() -> None:
    code = "import sys, ct; assert not {'ray', 'torch', 'pyarrow', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_declaring_a_pipeline_loads_neither_ray_nor_torch() -> None:
    names = "ct.Table, ct.Label, ct.Gate, ct.Canary, ct.Torch, ct.window, ct.NewData, ct.NotNull"
    code = f"import sys, ct; {names}; assert not {{'ray', 'torch'}} & set(sys.modules), 'ray or torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_is_quick_and_light() -> None:
    code = "import sys; sys.argv = ['ct', '--help']; from ct.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert not {'ray', 'torch', 'pandas', 'pyarrow'} & set(sys.modules), 'a heavy import'"
    # Or as long as four times what it stands on takes to be loaded: on a slower machine both take longer.
    took, yardstick = _best(code), _best("import pydantic, typer")
    assert took < max(0.3, 4 * yardstick), f"ct --help took {took:.2f} s at best, pydantic and typer alone {yardstick:.2f} s"


def _best(code: str) -> float:
    seconds = []
    for _ in range(7):
        begun = _computed()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
        seconds.append(_computed() - begun)
    return min(seconds)


def _computed() -> float:
    """CPU seconds of this process's children: what else the machine does is not counted."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_map_is_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 120


def test_the_map_names_rooms_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:ct/)?[a-z_]+/[a-z_/]+(?:\.py)?)`", text)
    assert named
    for name in named:
        places = [ROOT / name, ROOT / "ct" / name, ROOT / f"{name}.py", ROOT / "ct" / f"{name}.py"]
        assert any(place.exists() for place in places), f"ARCHITECTURE.md names {name}, which is not there"


def test_every_test_folder_mirrors_a_package() -> None:
    free = {"contracts", "loop", "cli", "jobs", "faults"}
    packages = {path.name for path in (ROOT / "ct").iterdir() if path.is_dir()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders <= packages | free


def test_the_lock_names_no_machine() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][a-z0-9.]*", pin) for pin in pins)
