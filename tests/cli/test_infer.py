"""`ct check --infer`: a declaration is printed, or written once beside the pipeline file, and then belongs to people."""

from __future__ import annotations

import json
from pathlib import Path

from ct.serving import local
from tests.loop import project


def test_a_declaration_is_printed_or_written_once(tmp_path: Path) -> None:
    folder = project.write(tmp_path / "shop", local.free_port())
    shard = str(project.shard_path(folder, 0))
    printed = project.ct(folder, "check", "--infer", "orders", shard).stdout
    assert "orders = ct.Table(" in printed
    assert not (folder / "orders.py").exists()
    told = json.loads(project.ct(folder, "check", "--infer", "orders", shard, "--write", "--json").stdout)
    assert (folder / "orders.py").read_text() == told["declaration"]
    assert told["declaration"].rstrip() == printed.rstrip()
    again = project.ct(folder, "check", "--infer", "orders", shard, "--write", check=False)
    assert again.returncode == 1
    assert "exists" in again.stdout + again.stderr
