"""A version is judged on its own features, whatever the pipeline has made of them since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ct
from ct.control import judging, rows
from ct.features.declare import to_spec
from ct.roles import Feature
from tests.control import shop


@dataclass
class Version:
    """Stands for a predictor: it scores by price and keeps what it was given."""

    features: tuple[Feature, ...]
    threshold: float = 0.5
    given: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def spec(self) -> Any:
        return SimpleNamespace(features=tuple(to_spec(feature) for feature in self.features))

    @property
    def encoder(self) -> Any:
        return SimpleNamespace(names=tuple(column.name for feature in self.features for column in feature.outputs()))

    def score_features(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        self.given = dict(columns)
        return np.asarray(1 / (1 + np.exp(-columns["price"] / 10)), dtype=np.float64)


def test_a_version_gets_the_features_that_it_was_trained_on(tmp_path: Path) -> None:
    gate = ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.01)])
    line = shop.pipeline().replace(features=[ct.numeric("price", clip=(0.0, 1.0))], gate=gate, holdout="10d")
    act = shop.opened(tmp_path / "shop", line)
    shop.land(act, 0, 1, 2, n=240)
    data = rows.rows(act.place, shop.run(act), on_step=lambda _: None)
    now = Version(line.features)
    before = Version((ct.numeric("price"), ct.category("city")))
    reports = [judging.compare(act.place, version, data) for version in (now, before)]  # type: ignore[arg-type]
    assert now.given["price"].max() == 1.0
    assert before.given["price"].max() > 1.0
    assert set(before.given) == {"price", "city"}
    assert np.array_equal(np.clip(before.given["price"], 0.0, 1.0), now.given["price"]), "the same rows in the same order"
    assert len(now.given["price"]) == int(data.split.judge.sum())
    assert reports[0].candidate.metrics != reports[1].candidate.metrics
