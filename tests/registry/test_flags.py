"""Feature flags: folded from the journal, set from the command line, refused where nobody would obey them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ct.cli import app
from ct.errors import InvalidRequest
from ct.registry import flags
from ct.registry.flags import Flags
from ct.store.journal import Journal
from tests.loop import project


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(f"sqlite:///{tmp_path / 'journal.db'}", actor="ann")


def test_flags_are_what_was_set_last(journal: Journal) -> None:
    assert flags.current(journal, "shop") == Flags()
    flags.set_(journal, "shop", "canary", "off", reason="a bad day")
    flags.set_(journal, "shop", "log", "fast")
    flags.set_(journal, "shop", "own.discount", {"percent": 5})
    flags.set_(journal, "shop", "canary", False)  # as it is: nothing to say
    found = flags.current(journal, "shop")
    assert found == Flags(canary=False, log="fast", own={"discount": {"percent": 5}})
    assert flags.current(journal, "another") == Flags()
    assert flags.set_(journal, "shop", "own.discount", None).own == {}
    first = next(iter(journal.read("flags/shop")))
    assert (first.actor, first.data) == ("ann", {"name": "canary", "value": False, "reason": "a bad day"})
    assert journal.version("flags/shop") == 4


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("canry", "off", "did you mean 'canary'"),
        ("discount", "5", "own.discount"),
        ("canary", "maybe", "on or off"),
        ("canary", 1, "on or off"),
        ("log", "slow", "durable or fast"),
        ("own.Bad Name", 1, "rename it"),
        ("own.big", "x" * 2000, "at most 1,024"),
        ("own.nan", float("nan"), "finite JSON"),
    ],
)
def test_what_nobody_would_obey_is_refused(journal: Journal, name: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        flags.set_(journal, "shop", name, value)
    assert journal.version("flags/shop") == 0


def test_the_command_sets_and_lists(tmp_path: Path) -> None:
    root = str(project.write(tmp_path / "shop", 8000))
    run = CliRunner().invoke
    assert (
        "would set shadow of late-orders to off"
        in run(app, ["flag", "set", "shadow", "off", "--dry-run", "--root", root]).output
    )
    assert json.loads(run(app, ["flag", "list", "--json", "--root", root]).output)["shadow"] is True
    assert run(app, ["flag", "set", "shadow", "off", "--reason", "noisy", "--root", root]).exit_code == 0
    assert run(app, ["flag", "set", "own.beta", '{"cities": ["Ulm"]}', "--root", root]).exit_code == 0
    listed = json.loads(run(app, ["flag", "list", "--json", "--root", root]).output)
    assert (listed["shadow"], listed["own.beta"]) == (False, {"cities": ["Ulm"]})
    wrong = run(app, ["flag", "set", "shadw", "off", "--root", root])
    assert wrong.exit_code == 1
    assert "did you mean 'shadow'" in wrong.output
