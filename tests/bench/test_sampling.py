"""The sampling simulation behaves as the samplers it stands for."""

import numpy as np
import pytest

from bench.sampling.plans import DECISION_WAIT_S, WAIT_AFTER_ROOT_S, Budget, outcome
from bench.sampling.samplers import Head, HeadThenTail, Tail
from bench.sampling.traffic import KINDS, Traffic, traffic

EVIDENT = [kind.name for kind in KINDS if kind.evident]
ROOMY = Tail(0.1, 1.0, DECISION_WAIT_S, WAIT_AFTER_ROOT_S, 10**9)


@pytest.fixture(scope="module")
def seen() -> Traffic:
    return traffic(np.random.default_rng(7), rate=200, seconds=240, spans_per_request=30)


def chance() -> np.random.Generator:
    return np.random.default_rng(8)


def test_kinds_have_their_shares(seen: Traffic) -> None:
    """Every kind is there, in the share it is said to have, and the shares are all there is."""
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)
    for index, kind in enumerate(KINDS[:-1]):
        assert (seen.kind == index).sum() == max(1, round(kind.share * len(seen)))
    assert (seen.first < seen.complete).all()


def test_a_coin_keeps_the_same_share_of_all_kinds(seen: Traffic) -> None:
    """Head sampling knows nothing of a request."""
    kept = outcome(Head(0.3).run(seen, chance()), seen)

    assert kept.kept["error"] == pytest.approx(0.3, abs=0.15)
    assert kept.kept["ordinary"] == pytest.approx(0.3, abs=0.02)
    assert kept.stored == pytest.approx(0.3, abs=0.02)
    assert kept.waiting == 0


def test_a_gateway_with_room_keeps_all_that_matters(seen: Traffic) -> None:
    """Each error, timeout, slow and killed request, and its share of the others."""
    kept = outcome(ROOMY.run(seen, chance()), seen)

    assert {name: kept.kept[name] for name in EVIDENT} == dict.fromkeys(EVIDENT, 1.0)
    assert kept.kept["ordinary"] == pytest.approx(0.1, abs=0.02)
    assert kept.dropped_undecided == 0


def test_who_decides_before_the_reaper_does_not_know_who_was_killed(seen: Traffic) -> None:
    """With half a minute's wait a killed request looks like any other."""
    hasty = Tail(0.0, 1.0, 30.0, None, 10**9)
    kept = outcome(hasty.run(seen, chance()), seen)

    assert kept.kept["error"] == 1
    assert kept.kept["killed"] < 1


def test_a_gateway_without_room_drops_the_oldest_undecided(seen: Traffic) -> None:
    """Whatever they are; how many waited never exceeds the room."""
    kept = outcome(Tail(0.1, 1.0, DECISION_WAIT_S, None, 1000).run(seen, chance()), seen)

    assert kept.waiting == 1000
    assert kept.dropped_undecided > 0.5
    assert kept.kept["error"] < 0.5


def test_the_roots_arrival_shortens_the_wait(seen: Traffic) -> None:
    """Fewer traces wait at once, and nothing is lost by it."""
    patient = Tail(0.1, 1.0, DECISION_WAIT_S, None, 10**9)

    assert ROOMY.run(seen, chance()).most_waiting < patient.run(seen, chance()).most_waiting / 3


def test_what_the_coin_loses_no_gateway_brings_back(seen: Traffic) -> None:
    """Of the errors, half are left."""
    kept = outcome(HeadThenTail(Head(0.5), ROOMY).run(seen, chance()), seen)

    assert 0.3 < kept.kept["error"] < 0.7


def test_the_ordinary_give_way_first_then_the_slow() -> None:
    """A budget below what matters cuts the slow ones; never errors, timeouts, killed."""
    assert Budget(1_000, 40, 400_000).shares == (1.0, 1.0)
    ordinary, slow = Budget(100_000, 40, 400_000).shares
    assert 0 < ordinary < 0.1
    assert slow == 1
    ordinary, slow = Budget(1_000_000, 40, 400_000).shares
    assert ordinary == 0
    assert 0 < slow < 1


def test_a_budget_is_kept_to_by_either_sampler(seen: Traffic) -> None:
    """So that rows of the table can be compared: both store what storage takes."""
    budget = Budget(200, 30, 600)
    for sampler in (budget.head(), budget.tail(200)):
        assert outcome(sampler.run(seen, chance()), seen).stored == pytest.approx(0.1, abs=0.02)
