"""The loss of each objective against its formula, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ct.objectives import Objective
from ct.training import losses


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("quantiles", [(0.3,), (0.1, 0.5, 0.9)])
def test_a_quantile_is_judged_by_its_own_rows_label(quantiles: tuple[float, ...], members: int) -> None:
    chance = np.random.default_rng(0)
    label = chance.normal(size=6)
    raw = chance.normal(size=(6, max(members, 1), len(quantiles)))
    gap = label[:, None, None] - raw
    share = np.array(quantiles)
    wanted = np.maximum(share * gap, (share - 1) * gap).mean(axis=(1, 2)).sum()
    given = torch.tensor(raw)
    given = given.squeeze(2) if len(quantiles) == 1 else given
    given = given if members else given.squeeze(1)
    found = losses.loss(Objective("quantiles", (), quantiles), given, torch.tensor(label), None)
    assert float(found) == pytest.approx(wanted)
