"""Runs every bench beside this file, one after the other, and prints one table: figure, goal, met or not. `--quick` is passed on.

soak.py is left out: it takes half an hour, and `make soak` calls it.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MEETS = {">=": operator.ge, "<=": operator.le}


def main() -> None:
    """Run all; exit 1 when one could not measure, 0 whatever was found."""
    results, broken = [], []
    for path in sorted(HERE.glob("*.py")):
        if path.stem in ("run", "soak"):
            continue
        print(f"--- {path.stem}", flush=True)
        found = _run(path, sys.argv[1:])
        if found is None:
            broken.append(path.stem)
        else:
            results.append(found)
    print()
    print("\n".join(table(results)))
    if broken:
        sys.exit(f"could not measure: {', '.join(broken)}")


def _run(path: Path, arguments: list[str]) -> dict[str, Any] | None:
    with subprocess.Popen([sys.executable, str(path), *arguments], stdout=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line if line.strip() else last
    return dict(json.loads(last)) if process.returncode == 0 else None


def table(results: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: bench, figure, value, goal, met."""
    rows = [("bench", "figure", "value", "goal", "met")]
    for result in results:
        for name, value in result["figures"].items():
            sign, goal = result["goals"].get(name, ("", None))
            met = "" if goal is None else "yes" if MEETS[sign](value, goal) else "NO"
            rows.append((result["bench"], name, f"{value:g}", "" if goal is None else f"{sign} {goal:g}", met))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    main()
