"""Every kind of check, found by looking into `ct/data/rules`: what a check must be, whatever it checks."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import numpy as np
import pyarrow as pa
import pytest

from ct import quarantine, testing, warn
from ct.data import rules
from ct.data.checks import Example, run
from ct.data.columns import Rows
from ct.ids import fingerprint
from ct.roles import Columns

TIME = pa.timestamp("us", tz="UTC")


def kinds() -> list[type]:
    """Each class with `example()` that a module of `rules` defines."""
    modules = [import_module(f"{rules.__name__}.{found.name}") for found in pkgutil.iter_modules(rules.__path__)]
    return [
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and hasattr(kind, "example")
    ]


KINDS = kinds()


def arrow(rows: Columns) -> Rows:
    """The same rows as they come from a file, texts as dictionaries."""
    made = {}
    for name, values in rows.items():
        if values.dtype == object:
            made[name] = pa.array(values, pa.string()).dictionary_encode()
        elif values.dtype == np.int64:
            made[name] = pa.array(values, mask=values == np.iinfo(np.int64).min).cast(TIME)
        else:
            made[name] = pa.array(values, from_pandas=True)
    return Rows(pa.table(made))


def test_every_file_of_rules_holds_a_kind() -> None:
    assert len({kind.__module__ for kind in KINDS}) == len(list(pkgutil.iter_modules(rules.__path__)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestKind:
    def test_it_is_a_check_on_good_and_bad_rows(self, kind: type) -> None:
        example: Example = kind.example()
        for rows in (example.keeps, example.breaks):
            testing.check_contract(example.check, rows, example.before)

    def test_it_passes_good_rows_and_names_bad_ones(self, kind: type) -> None:
        example = kind.example()
        good, left = run([example.check], example.keeps, example.before)
        assert (good.refused, good.warnings, good.aside) == ((), (), ())
        assert left is example.keeps
        bad, _ = run([example.check], example.breaks, example.before)
        (reason,) = (*bad.refused, *bad.aside)
        assert reason.rows > 0
        assert example.check.explain() in reason.found

    def test_rows_of_a_file_are_judged_like_plain_columns(self, kind: type) -> None:
        example = kind.example()
        for rows in (example.keeps, example.breaks):
            plain = example.check.violations(rows, example.before)
            np.testing.assert_array_equal(example.check.violations(arrow(rows), example.before), plain)

    def test_no_rows_break_nothing_but_a_number_of_rows(self, kind: type) -> None:
        example = kind.example()
        none = {name: values[:0] for name, values in example.keeps.items()}
        broken = example.check.violations(none, example.before)
        assert broken.shape in ((0,), ())

    def test_equal_declarations_have_equal_fingerprints(self, kind: type) -> None:
        assert fingerprint(kind.example().check) == fingerprint(kind.example().check)
        assert hash(kind.example().check) == hash(kind.example().check)

    def test_a_warning_refuses_nothing(self, kind: type) -> None:
        example = kind.example()
        found, left = run([warn(example.check)], example.breaks, example.before)
        assert not found.refused
        assert len(found.warnings) == 1
        assert left is example.breaks

    def test_rows_set_aside_are_those_that_break_it(self, kind: type) -> None:
        example = kind.example()
        broken = example.check.violations(example.breaks, example.before)
        found, left = run([quarantine(example.check, up_to=1.0)], example.breaks, example.before)
        if broken.shape == ():
            assert found.refused
            return
        np.testing.assert_array_equal(found.rows_aside, broken)
        assert [cause is not None for cause in found.causes] == list(broken)
        assert all(len(values) == (~broken).sum() for values in left.values())
