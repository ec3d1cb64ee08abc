"""The public names. A change here is a change of the API: say so in CHANGELOG.md."""

from __future__ import annotations

import pytest

import ct

NAMES = [
    "AB",
    "AllAtOnce",
    "Asha",
    "Bayes",
    "BlueGreen",
    "Canary",
    "Compare",
    "CtError",
    "DeltaTable",
    "Drift",
    "Ensemble",
    "Every",
    "Folder",
    "Fresh",
    "Gate",
    "Hook",
    "IcebergTable",
    "KeepLast",
    "Label",
    "LightGBM",
    "NewData",
    "NotNull",
    "ObjectStore",
    "OneOf",
    "Pipeline",
    "Population",
    "Present",
    "Random",
    "RowCount",
    "Rule",
    "SchemaPolicy",
    "Search",
    "Shadow",
    "Steady",
    "Step",
    "Table",
    "Then",
    "Torch",
    "Unique",
    "Usual",
    "Varied",
    "Within",
    "about",
    "at_least",
    "at_most",
    "auc",
    "baseline",
    "better",
    "business",
    "category",
    "cross",
    "cyclic",
    "drifted",
    "dropped",
    "ece",
    "error_rate",
    "events",
    "feature",
    "fits",
    "hard",
    "keyed",
    "latency",
    "latest",
    "models",
    "newest",
    "numeric",
    "only",
    "quality",
    "quarantine",
    "ratio",
    "recent",
    "scores",
    "slices",
    "tagged",
    "unsure",
    "warn",
    "window",
]


def test_public_names_are_frozen() -> None:
    assert sorted(ct.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_documented(name: str) -> None:
    assert (getattr(ct, name).__doc__ or "").strip(), f"ct.{name} has no docstring"


def test_dir_and_unknown_names() -> None:
    assert sorted(dir(ct)) == NAMES
    with pytest.raises(AttributeError, match="Pipelin"):
        ct.Pipelin  # noqa: B018
