"""Stopping whatever runs at its n-th durable operation, in this process: from then on nothing more reaches a disk, as if it were dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

STRIDE = 1 if os.environ.get("CT_FAULTS") == "all" else 13


class Killed(BaseException):
    """The process would be dead by now."""


def at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let every durable operation from the `step`-th on raise Killed: a file synced or put in its place, removed, a transaction committed."""
    passed = 0

    def around(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def called(*args: object, **kwargs: object) -> object:
            nonlocal passed
            passed += 1
            if passed >= step:
                raise Killed
            return call(*args, **kwargs)

        patch.setattr(owner, name, called)

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (sa.engine.default.DefaultDialect, "do_commit")):
        around(owner, name)
