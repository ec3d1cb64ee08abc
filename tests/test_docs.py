"""What README and docs show works: Python blocks run, commands exist, links lead somewhere, settings are all described."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ct.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def _blocks(*languages: str) -> Iterator[Any]:
    for page in PAGES:
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text()), 1):
            if language in languages:
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")


def _commands() -> list[list[str]]:
    lines = [line for block in _blocks("console") for line in block.values[0].splitlines()]
    return [line.removeprefix("$ ").split() for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("text", list(_blocks("python")))
def test_python_blocks_run(text: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", list(_blocks("json")))
def test_json_blocks_parse(text: str) -> None:
    json.loads(text)


def test_the_readme_shows_the_demos_file_as_it_is() -> None:
    assert (ROOT / "examples" / "flights.py").read_text().rstrip() in (ROOT / "README.md").read_text()


def test_the_readme_begins_with_its_two_commands() -> None:
    first = next(iter(BLOCK.finditer((ROOT / "README.md").read_text())))
    assert first[2].split("\n")[:2] == ["$ make demo", "$ make test"]


@pytest.mark.parametrize("command", [c for c in _commands() if c[0] == "ct"], ids=" ".join)
def test_ct_commands_and_their_options_exist(command: list[str]) -> None:
    import typer

    from ct.cli import app

    found: Any = typer.main.get_command(app)
    words = command[1:]
    while hasattr(found, "commands"):
        assert words[0] in found.commands, f"ct has no command {words[0]!r}"
        found, words = found.commands[words[0]], words[1:]
    options = {name for parameter in found.params for name in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
    assert not unknown, f"{' '.join(command)}: no such option {unknown}"
    takes = [parameter for parameter in found.params if parameter.param_type_name == "argument" and parameter.required]
    assert len([word for word in words if not word.startswith("-")]) >= len(takes), f"{' '.join(command)} lacks an argument"


@pytest.mark.parametrize("command", [c for c in _commands() if c[0] != "ct"], ids=" ".join)
def test_other_commands_name_what_exists(command: list[str]) -> None:
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make has no {command[1]}"
    assert command[0] in {"make", "python", "ray", "serve", "export", "cd", "chmod", "curl", "openssl"}
    for word in command:
        if re.fullmatch(r"(jobs|examples|serve_configs|bench)/\S+", word.strip('"')):
            assert (ROOT / word.strip('"')).exists(), f"{' '.join(command)}: there is no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_setting_is_described() -> None:
    text = (ROOT / "docs" / "getting-started.md").read_text()
    missing = [name for name in Settings.model_fields if name != "root" and f"`{name}`" not in text]
    assert not missing, f"docs/getting-started.md does not describe {missing}"


def test_the_makefile_says_what_it_can() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"make {target} " in done.stdout for target in ("help", "demo", "test", "check", "bench", "clean"))


def test_ci_calls_the_same_targets() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "make check" in script
    assert "make test" in script
    assert "[check, test]" in workflow
