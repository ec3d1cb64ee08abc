"""Settings from Optuna's tree-structured Parzen estimator, asked through Ray Tune's OptunaSearch, one after the other from a seed."""

from __future__ import annotations

from typing import Any

from ct.training.declare import Search
from ct.training.search import Params, Reached, Space

_LOSS = "loss"


class Asked:
    """One study. The same seed and the same order of asking and telling give the same settings.

    `random` settings are drawn before the estimator has a say. Choices are asked for by their place, so that they may be lists.
    """

    def __init__(self, space: Space, random: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._searches = space.searches
        self._asked = 0
        self._search = OptunaSearch(
            space={name: _distribution(search) for name, search in sorted(space.searches.items())},
            metric=_LOSS,
            mode="min",
            points_to_evaluate=[self._places(params) for params in space.begin()],
            sampler=optuna.samplers.TPESampler(seed=space.seed, n_startup_trials=random, constant_liar=True),
        )

    def ask(self) -> tuple[str, Params]:
        """The next settings, and the name under which their result is told."""
        self._asked += 1
        name = str(self._asked)
        found: dict[str, Any] = self._search.suggest(name) or {}
        return name, {
            key: search.choices[found[key]] if search.choices else found[key] for key, search in sorted(self._searches.items())
        }

    def tell(self, name: str, seen: Reached) -> None:
        """Tell how the settings did. A failed trial counts as pruned, worse than all others: Optuna would learn nothing from an error."""
        self._search.on_trial_complete(name, None if seen.loss is None else {_LOSS: seen.loss})

    def _places(self, params: Params) -> Params:
        searches = self._searches
        return {
            key: list(searches[key].choices).index(value) if searches[key].choices else value for key, value in params.items()
        }


def _distribution(search: Search) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if search.choices:
        return CategoricalDistribution(range(len(search.choices)))
    if search.whole:
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(float(search.low), float(search.high), log=search.log)
