"""Who chooses a sweep's trials: the same trials and the same winner whatever ends first, however many run, and wherever it is killed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.errors import InvalidPipeline, TrainingFailed
from ct.training import search as choosing
from ct.training.declare import Search
from ct.training.ledger import Ledger, Trial
from ct.training.search import Asha, Bayes, Leg, Population, Random, Reached, Space

SEARCHES = {
    "lr": Search(1e-4, 1e-1, log=True),
    "options.width": Search(8, 64),
    "options.kind": Search(choices=["plain", [1, 2], None]),
}
CHOOSERS = [Random(7), Asha(9, grace=1, factor=3), Bayes(7, batch=3), Population(6, every=2)]


def space(**changes: Any) -> Space:
    return Space(**{"searches": SEARCHES, "epochs": 9, "seed": 5, "first": {}, **changes})


def result(leg: Leg) -> Reached:
    """A made-up training: best near lr = 3e-3 and wide; better the longer; a large lr diverges."""
    lr = leg.params["lr"]
    for _, values in leg.course:
        lr = values.get("lr", lr)
    if lr > 0.05:
        return Reached(None, "the loss was no number")
    gap = (math.log10(lr) + 2.5) ** 2
    return Reached(round(0.3 + gap / 10 + 1 / leg.params["options.width"] + 0.2 / leg.until, 3))


def carried_out(
    chooser: Any, where: Space, *, parallel: int = 1, order: Any = None, kill_after: int = 10**6, known: dict[str, Reached]
) -> tuple[Ledger, list[Leg]]:
    """Run legs `parallel` at a time; whichever `order` draws ends first. Results go to `known`; stops after `kill_after` of them."""
    ledger, ran, running = Ledger(chooser, where, known), list[Leg](), list[Leg]()
    while not ledger.done and len(known) < kill_after:
        while len(running) < parallel and (leg := ledger.take()):
            running.append(leg)
            ran.append(leg)
        ended = running.pop(order.draw(st.integers(0, len(running) - 1)) if order else 0)
        known[ended.key] = result(ended)
        ledger.put(ended.key, known[ended.key])
    return ledger, ran


@pytest.mark.parametrize("chooser", CHOOSERS, ids=lambda chooser: chooser.name)
@settings(max_examples=15)
@given(data=st.data(), parallel=st.integers(1, 5), killed=st.integers(1, 20))
def test_no_order_of_ending_and_no_kill_changes_trials_or_winner(chooser: Any, data: Any, parallel: int, killed: int) -> None:
    calm, legs = carried_out(chooser, space(), known={})
    known: dict[str, Reached] = {}
    _, before = carried_out(chooser, space(), parallel=parallel, order=data, kill_after=killed, known=known)
    finished = set(known)
    ledger, after = carried_out(chooser, space(), parallel=parallel, order=data, known=known)
    assert ledger.trials() == calm.trials()
    assert ledger.winner() == calm.winner()
    assert not finished & {leg.key for leg in after}, "what was known is not run again"
    assert {leg.key for leg in (*before, *after)} == {leg.key for leg in legs} == set(known)
    assert len({leg.key for leg in legs}) == len(legs) <= chooser.legs(space()), "nothing runs twice"


@pytest.mark.parametrize("chooser", CHOOSERS, ids=lambda chooser: chooser.name)
def test_another_seed_gives_other_trials_within_the_space(chooser: Any) -> None:
    one, _ = carried_out(chooser, space(seed=1), known={})
    two, _ = carried_out(chooser, space(seed=2), known={})
    assert one.trials() != two.trials()
    for trial in (*one.trials(), *two.trials()):
        assert all(SEARCHES[name].holds(value) for name, value in trial.params.items())
    assert [trial.number for trial in one.trials()] == list(range(1, chooser.trials + 1))


@pytest.mark.parametrize("chooser", CHOOSERS, ids=lambda chooser: chooser.name)
def test_a_sweep_begins_with_the_last_best_if_it_still_fits(chooser: Any) -> None:
    best = {"lr": 3e-3, "options.width": 60, "options.kind": [1, 2]}
    middle = {name: search.middle() for name, search in SEARCHES.items()}

    def begun(first: dict[str, Any]) -> list[Any]:
        ledger = Ledger(chooser, space(first=first), {})
        return [dict(leg.params) for leg in (ledger.take(), ledger.take()) if leg]

    assert begun(best) == [best, middle]
    for other in ({}, {"lr": 3e-3}, {**best, "options.width": 65}, {**best, "options.kind": "odd"}):
        assert begun(other)[0] == middle


def test_asha_promotes_the_best_of_a_whole_rung_and_each_goes_on() -> None:
    ledger, legs = carried_out(Asha(9, grace=1, factor=3), space(), known={})
    assert [leg.until for leg in legs] == [1] * 9 + [3] * 3 + [9]
    assert len(legs) == Asha(9, grace=1, factor=3).legs(space())
    first = {leg.number: leg for leg in legs[:9]}
    ranked = sorted((seen.loss, at) for at, leg in first.items() if (seen := result(leg)).loss is not None)
    assert {leg.number for leg in legs[9:12]} == {at for _, at in ranked[:3]}
    assert all(leg.source == first[leg.number].key for leg in legs[9:12])
    assert sorted(trial.state for trial in ledger.trials()).count("finished") == 1
    assert ledger.winner().state == "finished"


def test_ties_go_to_the_lower_number() -> None:
    legs = [Leg(number, {"lr": number / 10}, 1) for number in (3, 1, 2)]
    assert [leg.number for leg in choosing.rank(legs, [Reached(0.5)] * 3)] == [1, 2, 3]
    assert [leg.number for leg in choosing.rank(legs, [Reached(0.5), Reached(None, "x"), Reached(0.4)])] == [2, 3]


def test_bayes_looks_where_it_was_good() -> None:
    searches = {"lr": Search(1e-4, 1e-1, log=True), "options.width": Search(8, 64)}
    ledger, _ = carried_out(Bayes(40, batch=4), space(searches=searches, seed=2), known={})
    late = [abs(math.log10(trial.params["lr"]) + 2.5) for trial in ledger.trials()[20:]]
    chance, _ = carried_out(Random(40), space(searches=searches, seed=2), known={})
    drawn = [abs(math.log10(trial.params["lr"]) + 2.5) for trial in chance.trials()[20:]]
    assert sum(late) / len(late) < 0.7 * sum(drawn) / len(drawn)


def test_a_small_space_is_tried_once() -> None:
    searches = {"lr": Search(choices=[1e-3, 1e-2]), "options.width": Search(choices=[8, 16])}
    for chooser in (Random(20), Bayes(20, batch=3)):
        ledger, legs = carried_out(chooser, space(searches=searches), known={})
        assert len(legs) == len(ledger.trials()) == 4


def test_a_population_takes_over_and_moves_on() -> None:
    ledger, legs = carried_out(Population(8, every=3), space(), known={})
    assert [leg.until for leg in legs] == [3] * 8 + [6] * 8 + [9] * 8
    assert len(legs) == Population(8, every=3).legs(space())
    by_key = {leg.key: leg for leg in legs}
    taken = [leg for leg in legs if leg.course and leg.course[-1][0] == leg.until - 3]
    assert len(taken) >= 4
    for leg in taken:
        donor = by_key[leg.source]
        assert (donor.params, donor.course, donor.until) == (leg.params, leg.course[:-1], leg.until - 3)
        assert set(leg.course[-1][1]) == {"lr"}
    assert all(trial.state == "finished" for trial in ledger.trials()), "whoever failed has taken over from another"


def test_a_sweep_in_which_all_fails_says_why() -> None:
    for chooser in CHOOSERS:
        ledger = Ledger(chooser, space(), {})
        while leg := ledger.take():
            ledger.put(leg.key, Reached(None, "the model raised KeyError"))
        with pytest.raises(TrainingFailed, match="every trial of the sweep failed: the model raised KeyError"):
            ledger.winner()


def test_an_unfinished_sweep_shows_what_it_has() -> None:
    ledger = Ledger(Random(3), space(), {})
    leg = ledger.take()
    assert leg
    ledger.put(leg.key, Reached(0.25))
    assert [trial.state for trial in ledger.trials()] == ["finished", "waiting", "waiting"]
    assert ledger.best() == Trial(1, leg.params, 9, 0.25, "finished")


def test_a_trial_that_was_promoted_is_still_the_best_while_it_goes_on() -> None:
    ledger = Ledger(Asha(3, grace=1, factor=2), space(), {})
    for loss in (0.5, 0.3, 0.4):
        leg = ledger.take()
        assert leg
        ledger.put(leg.key, Reached(loss))
    best = ledger.best()
    assert best
    assert (best.number, best.loss, best.epochs, best.state) == (2, 0.3, 1, "waiting")


@pytest.mark.parametrize(
    ("chooser", "changes", "said"),
    [
        (Asha(grace=9), {}, "first rung"),
        (Asha(), {"epochs": 0, "searches": {"epochs": Search(1, 9)}}, "fixed number of epochs"),
        (Population(every=9), {}, "more epochs than"),
        (Population(), {"searches": {"options.width": Search(8, 64)}}, "one of"),
    ],
)
def test_what_cannot_be_searched_so_is_refused(chooser: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidPipeline, match=said):
        Ledger(chooser, space(**changes), {})


def test_faults_of_a_declaration_are_named() -> None:
    assert [fault for chooser in CHOOSERS for fault in chooser.validate()] == []
    wrong = [Random(0), Asha(1, grace=0, factor=1), Bayes(True, batch=0.5), Population(1, every=0)]  # type: ignore[arg-type]
    text = " ".join(fault for chooser in wrong for fault in chooser.validate())
    for name in ("trials is 0", "grace", "factor", "trials is True", "batch", "every"):
        assert name in text


def test_epochs_may_be_searched_at_random() -> None:
    searches = {"epochs": Search(2, 6)}
    ledger, legs = carried_out_epochs(Random(4), space(searches=searches, epochs=0))
    assert [leg.until for leg in legs] == [leg.params["epochs"] for leg in legs]
    assert {trial.state for trial in ledger.trials()} == {"finished"}


def carried_out_epochs(chooser: Any, where: Space) -> tuple[Ledger, list[Leg]]:
    ledger, legs = Ledger(chooser, where, {}), list[Leg]()
    while leg := ledger.take():
        legs.append(leg)
        ledger.put(leg.key, Reached(1 / leg.until))
    return ledger, legs
