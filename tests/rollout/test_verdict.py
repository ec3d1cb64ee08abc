"""Verdicts: what each kind of canary gets, how often an equal one is rolled back under peeking, how soon a bad one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import ct
from ct.ids import canonical, describe
from ct.rollout.verdict import ALPHA, Cell, Verdict, judge

PLAN = ct.Canary(10, 50, 100, guards=[ct.error_rate(), ct.latency("p99"), ct.quality()])


def cell(weight: float, arm: str, total: int = 0, errors: int = 0, slow: int = 0, labelled: int = 0, wrong: int = 0) -> Cell:
    return Cell(weight, arm, total, errors, {"p99": slow}, labelled, wrong)


def cells(weight: float, stable: tuple[int, ...], canary: tuple[int, ...]) -> tuple[Cell, Cell]:
    return cell(weight, "stable", *stable), cell(weight, "canary", *canary)


GOOD = cells(0.1, (1900, 2, 19, 1000, 200), (210, 0, 2, 100, 21))


def look(found: Sequence[Cell], step: int = 0, elapsed: float = 10.0, plan: ct.Canary = PLAN) -> Verdict:
    return judge(plan, found, step=step, elapsed_s=elapsed)


def test_a_good_canary_passes_its_step() -> None:
    assert look(GOOD).decision == "promote"


def test_no_data_is_never_a_pass() -> None:
    assert look(()).decision == "continue"
    assert look((), elapsed=3600).decision == "hold"
    assert "0 of 200" in look(()).cause


def test_each_step_wants_its_own_requests() -> None:
    assert look(GOOD, step=1).decision == "continue"
    more = (*GOOD, *cells(0.5, (250, 0, 2, 100, 20), (250, 0, 3, 100, 20)))
    assert look(more, step=1).decision == "promote"
    assert look((*more, cell(1.0, "canary", 250, 0, 90, 0, 0)), step=2).decision == "promote"  # nobody to be slow beside
    assert look((*more, cell(1.0, "canary", 250, 7, 2, 0, 0)), step=2).decision != "promote"


def test_unlabelled_quality_waits_then_holds() -> None:
    blind = cells(0.1, (1900, 2, 19, 0, 0), (210, 0, 2, 0, 0))
    assert look(blind).decision == "continue"
    held = look(blind, elapsed=3600)
    assert held.decision == "hold"
    assert "0 of 50" in held.cause


@pytest.mark.parametrize(
    ("canary", "metric"),
    [((30, 12, 0, 0, 0), "error_rate"), ((210, 0, 60, 0, 0), "latency_p99"), ((210, 0, 2, 100, 80), "wrong_rate")],
)
def test_harm_is_rolled_back_and_named(canary: tuple[int, ...], metric: str) -> None:
    found = look(cells(0.1, (1900, 2, 19, 1000, 200), canary))
    assert found.decision == "roll_back"
    assert found.cause.startswith(metric)
    worst = max(found.evidence, key=lambda item: item.e_value)
    assert worst.harmful
    assert canonical(describe(found.evidence))


def test_at_100_percent_the_cap_still_guards() -> None:
    assert look((*GOOD, cell(1.0, "canary", 300, 30)), step=2).decision == "roll_back"


def test_slower_than_stable_but_within_the_factor_is_no_harm() -> None:
    assert look(cells(0.5, (20_000, 0, 200, 1000, 200), (20_000, 0, 260, 1000, 200)), step=1).decision == "promote"


def test_a_rate_that_moves_over_the_day_is_no_harm() -> None:
    calm, storm = cells(0.1, (9000, 0, 9, 9000, 900), (1000, 0, 1, 1000, 100)), (1000, 0, 100, 1000, 400)
    assert look((*calm, *cells(0.5, storm, storm)), step=1).decision == "promote"


def test_a_broken_split_holds() -> None:
    found = look(cells(0.1, (1000, 0, 10, 500, 100), (1000, 0, 10, 500, 100)))
    assert found.decision == "hold"
    assert "split is broken" in found.cause
    bad = look(cells(0.1, (1000, 0, 10, 500, 100), (1000, 0, 10, 500, 400)))
    assert bad.decision == "roll_back"  # worse even for what it got
    assert look((replace(GOOD[0], weight=1.0), replace(GOOD[1], weight=1.0)), step=2).decision == "hold"


def test_blue_green_goes_by_caps_and_a_shadow_waits_for_a_person() -> None:
    blue = ct.BlueGreen(guards=[ct.error_rate(), ct.latency()])
    assert judge(blue, [cell(1.0, "canary", 200, 1, 3)], step=0, elapsed_s=1).decision == "promote"
    assert judge(blue, [cell(1.0, "canary", 200, 1, 30)], step=0, elapsed_s=4000).decision == "hold"
    assert judge(blue, [cell(1.0, "canary", 200, 30, 3)], step=0, elapsed_s=1).decision == "roll_back"
    assert judge(ct.Shadow(), GOOD, step=0, elapsed_s=1).decision == "continue"
    assert judge(ct.Shadow(), GOOD, step=0, elapsed_s=4000).decision == "hold"


def test_each_latency_quantile_is_told_and_their_mean_decides() -> None:
    plan = ct.Canary(50, 100, guards=[ct.latency("p50", "p90", "p99")], min_requests=100)

    def slow(*counts: int, n: int = 2000) -> Verdict:
        told = [Cell(0.5, "stable", n, slow={"p50": 1000, "p90": 200, "p99": 20})]
        return look([*told, Cell(0.5, "canary", n, slow=dict(zip(("p50", "p90", "p99"), counts, strict=True)))], plan=plan)

    same = slow(1005, 205, 21)
    assert same.decision == "promote"
    whole, *parts = same.evidence
    assert (whole.metric, [item.metric for item in parts]) == (
        "latency_p50_p90_p99",
        ["latency_p50", "latency_p90", "latency_p99"],
    )
    assert whole.e_value == pytest.approx(sum(item.e_value for item in parts) / 3)
    assert [item.limit for item in same.evidence] == [20.0, 60.0, 60.0, 60.0]
    tail = slow(1005, 205, 120)
    assert (tail.decision, tail.cause.split(":")[0]) == ("roll_back", "latency_p99")
    middle = slow(1900, 205, 21)
    assert (middle.decision, middle.cause.split(":")[0]) == ("roll_back", "latency_p50")
    # Too slow to pass by the middle quantile alone, though no harm is proven yet.
    assert slow(1005, 345, 21).cause.startswith("latency_p90: canary 345 of 2,000")


def test_the_hard_circuits_end_a_canary_that_is_down() -> None:
    plan = ct.Canary(50, 100, guards=[], min_requests=20)

    def down(failed: int, stable_errors: int = 1, answered: int | None = 9, total: int = 60, errors: int = 0) -> Verdict:
        stable = Cell(0.5, "stable", total, stable_errors, succeeded_at=answered)
        return look([stable, Cell(0.5, "canary", total, errors or failed, failed_in_a_row=failed, failing_since=5)], plan=plan)

    found = down(5)
    assert (found.decision, found.reason) == ("roll_back", "circuit")
    assert found.cause == "the canary is down: its last 5 units failed in a row at 50%"
    assert down(4).decision == "promote"
    assert down(5, stable_errors=24).decision == "promote", "stable fails as often by chance"
    assert down(9, answered=5).decision == "promote", "stable has not answered since, it is down as well"
    assert down(9, answered=None).decision == "promote"
    alone = down(1, total=20, errors=20)  # one user's, so it is one unit
    assert alone.cause == "the canary is down: all of its 20 requests at 50% failed"
    assert down(1, stable_errors=20, total=20, errors=20).decision == "promote"
    assert down(1, total=19, errors=19).decision == "continue"
    everywhere = look([Cell(1.0, "canary", 30, 5, failed_in_a_row=5)], plan=plan, step=1)
    assert everywhere.decision == "roll_back", "nobody is beside it"


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.4])
def test_the_circuits_seldom_end_an_equal_canary(rate: float) -> None:
    """100 rollouts of 4,000 requests, half of them the canary's, looked at after each of its failures."""
    rng, plan, wrong = np.random.default_rng(8), ct.Canary(50, 100, guards=[], min_requests=10**9), 0
    for _ in range(100):
        ours, failed = rng.random(4000) < 0.5, rng.random(4000) < rate
        run, since, answered, seen = 0, None, None, np.zeros((2, 2), int)
        for at, (arm, bad) in enumerate(zip(ours.tolist(), failed.tolist(), strict=True)):
            seen[int(arm)] += (1, bad)
            if not arm:
                answered = answered if bad else at
            else:
                since = (since if run else at) if bad else None
                run = run + 1 if bad else 0
            if run >= 5:
                stable = Cell(0.5, "stable", *seen[0].tolist(), succeeded_at=answered)
                canary = Cell(0.5, "canary", *seen[1].tolist(), failed_in_a_row=run, failing_since=since)
                if look([stable, canary], plan=plan).reason == "circuit":
                    wrong += 1
                    break
    assert wrong <= 1


# -- simulation: whole rollouts, looked at 20 times


@dataclass(frozen=True)
class Arm:
    """Chances of an error, a slow answer, a wrong answer; `label` is the chance that the truth is known by the look."""

    error: float = 0.002
    slow: float = 0.01
    wrong: float = 0.20
    label: float = 0.5


USERS = 400


def rollout(rng: np.random.Generator, stable: Arm, canary: Arm, *, per_look: int = 300, looks: int = 20) -> tuple[str, int]:
    """(the last decision or "open", requests until then). Looks are ten minutes apart; rates swell and fall over them, for both arms alike.

    400 users ask, who stay on one arm. Of each user's requests in a look the first speaks, and of the labelled ones the first.
    """
    counts: dict[tuple[float, str], np.ndarray] = {}
    asked: dict[tuple[float, str], set[int]] = {}
    step, bucket = 0, rng.random(USERS)
    rates = {name: np.array([getattr(arm, name) for arm in (stable, canary)]) for name in ("error", "slow", "wrong", "label")}
    for turn in range(looks):
        swell = 1 + 0.8 * np.sin(turn / 3)
        weight = (0.1, 0.5, 1.0)[step]
        users = rng.integers(0, USERS, per_look)
        side = (bucket[users] < weight).astype(int)
        error, slow, wrong = (rng.random(per_look) < rates[name][side] * swell for name in ("error", "slow", "wrong"))
        known = rng.random(per_look) < rates["label"][side]
        first = np.isin(np.arange(per_look), np.unique(users, return_index=True)[1])
        labelled = np.flatnonzero(known)
        heard = np.isin(np.arange(per_look), labelled[np.unique(users[labelled], return_index=True)[1]])
        told = [error | True, error, slow, known, known & wrong, first, first & error, first & slow, heard, heard & wrong]
        for at, name in enumerate(("stable", "canary")):
            asked.setdefault((weight, name), set()).update(users[side == at].tolist())
            new = np.array([(part & (side == at)).sum() for part in told])
            counts[weight, name] = counts.get((weight, name), np.zeros(10, int)) + new
        cells = [replace(counted(*place, *map(int, c)), distinct=len(asked[place])) for place, c in counts.items()]
        found = look(cells, step=step)
        if found.decision in ("roll_back", "hold"):
            return found.decision, (turn + 1) * per_look
        if found.decision == "promote":
            if step == 2:
                return "promote", (turn + 1) * per_look
            step += 1
    return "open", looks * per_look


def counted(weight: float, arm: str, *counts: int) -> Cell:
    """All requests, then those that speak for their user."""
    every, units = (
        Cell(weight, arm, n, bad, {"p99": slow}, known, off) for n, bad, slow, known, off in (counts[:5], counts[5:])
    )
    asked = replace(every, unit_total=units.total, unit_errors=units.errors, unit_slow=units.slow)
    return replace(asked, unit_labelled=units.labelled, unit_wrong=units.wrong)


def test_equal_canaries_are_rolled_back_less_often_than_alpha_under_peeking() -> None:
    rng = np.random.default_rng(0)
    ends = [rollout(rng, Arm(), Arm())[0] for _ in range(300)]
    false = ends.count("roll_back") / 300
    assert false <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 300)
    assert ends.count("hold") <= 3
    assert ends.count("promote") >= 250


def test_no_metric_alarms_on_equal_arms_however_often_one_looks() -> None:
    """Each guard alone and never promoted: 300 rollouts, 200 looks each, a weight that changes on the way."""
    rng = np.random.default_rng(1)
    plan = ct.Canary(10, 50, guards=[ct.error_rate(max=0.9)], min_requests=10**9)
    false = 0
    for _ in range(300):
        bad = rng.binomial(100, 0.05, size=200)
        share = np.where(np.arange(200) < 100, 0.1, 0.5)
        canary = rng.binomial(bad, share)
        low, high = np.cumsum(canary[:100]), np.cumsum(canary[100:])
        for turn in range(0, 200, 2):
            seen = [(0.1, int(bad[: min(turn + 1, 100)].sum()), int(low[min(turn, 99)]))]
            if turn >= 100:
                seen.append((0.5, int(bad[100 : turn + 1].sum()), int(high[turn - 100])))
            found = [c for w, n, k in seen for c in (cell(w, "stable", 0, n - k), cell(w, "canary", 10**6, k))]
            if judge(plan, found, step=0, elapsed_s=0).evidence[0].e_value >= 1 / ALPHA:
                false += 1
                break
    assert false / 300 <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 300)


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()


@pytest.mark.parametrize(
    ("row", "canary"),
    [
        ("errors 5 %", Arm(error=0.05)),
        ("slow 10 %", Arm(slow=0.10)),
        ("wrong 45 %", Arm(wrong=0.45)),
        ("errors 1 %", Arm(error=0.01)),
    ],
)
def test_harm_is_found_as_often_and_as_soon_as_the_docs_say(row: str, canary: Arm) -> None:
    (said,) = re.findall(rf"^\| {row} \| ([\d.]+) % \| ([\d.]+) % \| ([\d,]+) \|$", DOCUMENTED, re.MULTILINE)
    back, promoted, requests = (float(number.replace(",", "")) for number in said)
    rng = np.random.default_rng(2)
    ends = [rollout(rng, Arm(), canary) for _ in range(100)]
    for word, share in (("roll_back", back), ("promote", promoted)):
        # As a percentage of 100 rollouts; three standard errors, and one for a share that is nearly all or nothing.
        assert abs([end for end, _ in ends].count(word) - share) <= 3 * np.sqrt(share * (100 - share) / 100) + 1
    assert np.median([n for end, n in ends if end == "roll_back"]) == pytest.approx(requests, rel=0.4)


def test_the_split_of_users_who_ask_often_is_no_more_uneven_than_they_are() -> None:
    """Fifty users at 10 %: their requests follow them, so the share of requests strays far, and nobody is to hold for it."""
    rng, wrongly = np.random.default_rng(3), 0
    for _ in range(200):
        ours = rng.binomial(50, 0.1)
        cells = [
            Cell(0.1, arm, 200 * users, distinct=users, unit_total=20 * users)
            for arm, users in (("stable", 50 - ours), ("canary", ours))
        ]
        wrongly += look(cells).decision == "hold"
    assert wrongly == 0
    broken = look([Cell(0.1, "stable", 9000, distinct=900), Cell(0.1, "canary", 2000, distinct=200)])
    assert (broken.decision, broken.cause[:33]) == ("hold", "the canary got 200 of 1,100 units")
