"""What the tests of faults share: projects at every place, and a pipeline over the table of sales."""

from __future__ import annotations

from ..data.conftest import anywhere, make_place, place

__all__ = ["anywhere", "make_place", "place"]
