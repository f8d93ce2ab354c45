from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.policy.bound import share
from cacheproxy.policy.budget import FEWEST, HORIZON, Account, most_wrong
from cacheproxy.policy.trust import NEW

LEAST = 0.65
"""From where on the category serves."""


def account(labels: list[tuple[float, bool]], seen: int = 500, *, hit: bool = True) -> Account:
    made, random = Account(), Random(1)
    for _ in range(seen):
        made.see(random.betavariate(4, 1))
    for probability, right in labels:
        made.label(probability, NEW, right=right, hit=hit, least=LEAST)
    return made


def calibrated(count: int, seed: int = 2) -> list[tuple[float, bool]]:
    random = Random(seed)
    told = [random.betavariate(6, 1) for _ in range(count)]
    return [(p, random.random() < p) for p in told]


@pytest.mark.parametrize("delta", [0.001, 0.01, 0.02, 0.05, 0.1])
def test_so_many_wrong_hits_are_within_delta_and_one_more_is_not(delta: float) -> None:
    most = most_wrong(delta)
    assert share(most, HORIZON).high <= delta or most == 0
    assert share(most + 1, HORIZON).high > delta


def test_without_labels_enough_no_ceiling_is_known() -> None:
    known = [(0.9, True)] * FEWEST
    assert account(known[1:]).ceiling(0.02) == 1.0
    assert account(known).ceiling(0.02) < 1.0
    never_served = account([(0.3, True)] * 2 * FEWEST, hit=False)
    assert never_served.ceiling(0.02) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.005, 0.2), st.floats(0.0, 0.2), st.integers(FEWEST, 300))
def test_a_larger_budget_never_lowers_the_ceiling(delta: float, more: float, count: int) -> None:
    made = account(calibrated(count))
    assert made.ceiling(delta + more) >= made.ceiling(delta)


def test_what_is_expected_below_the_ceiling_stays_within_the_budget() -> None:
    made = account(calibrated(2000), seen=5000)
    random, wrong, hits = Random(3), 0.0, 0
    ceiling = made.ceiling(0.05)
    for _ in range(5000):
        p = random.betavariate(4, 1)
        if made.allows(p, NEW, ceiling):
            hits += 1
            wrong += 1 - p
    assert hits > 500
    assert wrong / hits <= 0.05


def test_wrong_hits_lower_the_ceiling_and_right_ones_raise_it_again() -> None:
    made = account(calibrated(500))
    before = made.ceiling(0.05)
    for _ in range(60):
        made.label(0.97, NEW, right=False, hit=True, least=LEAST)
    tightened = made.ceiling(0.05)
    assert tightened < before
    for _ in range(3000):
        made.label(0.97, NEW, right=True, hit=True, least=LEAST)
    assert made.ceiling(0.05) > tightened


def test_an_entry_that_was_wrong_is_refused_where_a_new_one_is_served() -> None:
    made = account(calibrated(1500), seen=3000)
    ceiling = made.ceiling(0.05)
    bad = NEW
    for _ in range(4):
        bad = made.label(0.97, bad, right=False, hit=False, least=LEAST)
    assert made.allows(0.97, NEW, ceiling)
    assert not made.allows(0.97, bad, ceiling)


def test_only_random_samples_of_hits_are_the_measured_share() -> None:
    made = Account()
    made.label(0.9, NEW, right=False, hit=False, least=LEAST)
    assert made.share.trials == 0
    made.label(0.9, NEW, right=False, hit=True, least=LEAST)
    assert (made.share.events, made.share.trials) == (1, 1)


def test_what_was_seen_and_labelled_is_bounded() -> None:
    made = Account()
    for _ in range(25_000):
        made.see(0.9)
    for _ in range(5000):
        made.label(0.9, NEW, right=True, hit=True, least=LEAST)
    assert sum(made.seen) == made.total <= 20_000
    assert made.labelled <= 4000


def test_a_ceiling_falls_at_once_and_rises_in_steps() -> None:
    made = account(calibrated(1500), seen=3000)
    found = made.ceiling(0.05)
    assert made.settled(0.05, None) == found
    assert made.settled(0.05, found * 2) == found
    low = found / 2
    risen = made.settled(0.05, low)
    assert low < risen < low + (found - low) * 0.2
    assert made.settled(0.05, found * 0.99) == found * 0.99


def test_the_lowest_probability_served_is_where_risk_meets_the_ceiling() -> None:
    made = account(calibrated(1500), seen=3000)
    least = made.least(made.ceiling(0.05))
    assert 0.5 < least < 1.0
    assert made.allows(least + 0.001, NEW, made.ceiling(0.05))
    assert not made.allows(least - 0.01, NEW, made.ceiling(0.05))
    assert (made.least(1.0), made.least(0.0)) == (0.0, 1.0)


@pytest.mark.parametrize("least", [0.5, 0.65, 0.8, 0.95])
def test_wrong_hits_tighten_wherever_a_category_serves_from(least: float) -> None:
    made, p = account([]), least + 0.02
    for _ in range(1000):
        made.label(p, NEW, right=False, hit=True, least=least)
    assert made.labels == made.labelled == 1000
    assert not made.allows(p, NEW, made.ceiling(0.05))


def test_hits_below_the_minimum_count_since_load_lets_them_be_served() -> None:
    made = account([(0.55, False)] * FEWEST)
    assert made.labels == FEWEST
    assert not made.allows(0.66, NEW, made.ceiling(0.05))


@pytest.mark.parametrize(("p", "counts"), [(0.9, True), (0.66, True), (0.6, True), (0.45, False)])
def test_what_was_refused_counts_where_it_is_near_to_what_is_served(p: float, counts: bool) -> None:
    assert account([(p, True)] * FEWEST, hit=False).labels == (FEWEST if counts else 0)


@pytest.mark.parametrize("delta", [0.01, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("p", [0.55, 0.7, 0.9])
def test_where_every_hit_is_wrong_few_labels_end_it(p: float, delta: float) -> None:
    made, held = account([]), 1.0
    while made.allows(p, NEW, held) and made.labels < FEWEST:
        made.label(p, NEW, right=False, hit=True, least=0.5)
        held = made.settled(delta, held)
    assert made.labels <= 5
    right = made.label(p, NEW, right=True, hit=True, least=0.5)
    assert not made.allows(p, right, made.settled(delta, held))  # what told plainly is not undone by one more


def test_one_wrong_hit_alone_is_chance() -> None:
    assert account([(0.9, False)]).ceiling(0.01) == 1.0
