"""Users' own functions as features: what decides their result is in their name, and what they do stays within them."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import worlds
from test_online import trips

import ct
from ct.errors import Corrupt, InvalidPipeline
from ct.features.build import build
from ct.features.declare import from_spec, own_features, to_spec
from ct.features.history import TableHistory
from ct.features.transform import transform
from ct.ids import fingerprint

FILE = """
import numpy as np
import ct
from near import halved

LIMIT = {limit}
EDGES = np.array([{limit}, 9.0])

def doubled(x):
    return x * {factor}

@ct.feature("x")
def plain(x):
    return x + 1

@ct.feature("x")
def limited(x):
    return np.minimum(doubled(x), LIMIT)

@ct.feature("x")
def beside(x):
    return halved(x)

@ct.feature("x")
def both(x):
    return limited(x) + np.digitize(x, EDGES)

def scaled(by):
    @ct.feature("x")
    def times(x):
        return [value * by for value in x]
    return times

by_two, by_three = scaled(2), scaled(3)
"""


def loaded(folder: Path, *, limit: float = 5.0, factor: int = 2, divisor: int = 2):
    """The file above as a module, newly loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "near.py").write_text(f"def halved(x):\n    return x / {divisor}\n")
    path = folder / "mine.py"
    path.write_text(FILE.format(limit=limit, factor=factor))
    sys.path.insert(0, str(folder))
    try:
        spec = spec_from_file_location("mine", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("near", None)
    return module


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({}, set()),
        ({"limit": 6.0}, {"limited", "both"}),
        ({"factor": 3}, {"limited", "both"}),
        ({"divisor": 4}, {"beside"}),
    ],
)
def test_a_function_is_another_one_when_what_it_uses_of_its_folder_changes(tmp_path, change, changed):
    before, after = loaded(tmp_path / "a"), loaded(tmp_path / "b", **change)
    found = set()
    for name in ("plain", "limited", "beside", "both", "by_two"):
        old, new = getattr(before, name), getattr(after, name)
        if fingerprint(old) != fingerprint(new):
            found.add(name)
            with pytest.raises(Corrupt, match="has changed since"):
                from_spec(to_spec(old), {new.name: new})
        else:
            assert from_spec(to_spec(old), {new.name: new}) is new
    assert found == changed


def test_functions_made_by_one_function_differ_by_what_they_hold(tmp_path):
    module = loaded(tmp_path)
    assert module.by_two(np.array([1.0])) == [2.0]
    assert module.by_three(np.array([1.0])) == [3.0]
    assert fingerprint(module.by_two) != fingerprint(module.by_three)
    assert module.by_two.source != module.by_three.source


def test_a_function_that_holds_what_has_no_stable_form_is_refused():
    held = object()

    @ct.feature("x")
    def odd(x):
        return x + bool(held)

    with pytest.raises(InvalidPipeline, match="no stable form"):
        fingerprint(odd)


def test_a_function_may_change_its_arrays_and_no_other_feature_sees_it():
    @ct.feature("x")
    def filled(x):
        x[np.isnan(x)] = 0.0
        return x

    rows = {"x": np.array([1.0, np.nan])}
    made = transform([filled, ct.numeric("x")], rows, np.zeros(2, np.int64), TableHistory({}))
    assert made["filled"].tolist() == [1.0, 0.0]
    assert np.isnan(made["x"][1])
    assert np.isnan(rows["x"][1])


def test_what_is_no_number_is_told_as_our_error():
    @ct.feature("x")
    def words(x):
        return np.array(["a"] * len(x), dtype=object)

    with pytest.raises(InvalidPipeline, match="'words' fails"):
        transform([words], {"x": np.zeros(2)}, np.zeros(2, np.int64), TableHistory({}))


def test_a_thing_that_is_no_function_is_refused():
    with pytest.raises(InvalidPipeline, match="a function in a file"):
        ct.feature("x")(len)


def test_a_function_is_found_however_much_is_said_about_it(tmp_path):
    plain = loaded(tmp_path).plain
    told = ct.about(ct.about(plain, owner="ops"), description="one more")
    assert own_features([told]) == {"plain": plain}
    assert from_spec(to_spec(told), own_features([told])) == told


def test_workers_have_what_a_function_uses(tmp_path, monkeypatch, ray_local):
    """Workers know neither the pipeline file nor what lies beside it."""
    (tmp_path / "mine.py").write_text(FILE.format(limit=5.0, factor=2).replace('"x"', '"leg"'))
    (tmp_path / "near.py").write_text("BY = 2.0\n\n\ndef halved(x):\n    return x / BY\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine

    try:
        line = worlds.pipeline(features=[mine.limited, ct.about(mine.beside, owner="ops"), mine.both, mine.by_two])
        files = [
            worlds.shard(worlds.TRIPS, worlds.with_legs(trips(20, seed=seed)), tmp_path / f"{seed}.parquet") for seed in (1, 2)
        ]
        for folder, parallel in (("many", True), ("one", False)):
            build(line, {"trips": files, "sky": []}, folder=tmp_path / folder, parallel=parallel)
        many, one = ({path.name: path.read_bytes() for path in (tmp_path / at).iterdir()} for at in ("many", "one"))
        assert len(one) == 10
        assert many == one
    finally:
        for name in ("mine", "near"):
            sys.modules.pop(name, None)
