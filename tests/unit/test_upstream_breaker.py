"""Ejection, the connect breaker, cool-downs and the retry budget, on a clock that only a test moves."""

from __future__ import annotations

import random

import pytest

from cacheproxy.upstream.breaker import CONNECT, EJECTION, Breaker, CoolDown, Rule
from cacheproxy.upstream.budget import RetryBudget


def attempt(breaker: Breaker, succeeded: bool | None, now: float) -> None:
    breaker.end(breaker.begin(), succeeded, now)


def opened(rule: Rule, now: float = 0.0) -> Breaker:
    breaker = Breaker(rule)
    for _ in range(rule.failures):
        attempt(breaker, False, now)
    return breaker


def test_four_failures_in_a_row_eject_nobody_and_the_fifth_does() -> None:
    breaker = Breaker(EJECTION)
    for _ in range(4):
        attempt(breaker, False, 0)
    assert not breaker.out(0)
    attempt(breaker, False, 0)
    assert breaker.out(0)
    assert (breaker.back_at, breaker.opened) == (30, 1)


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker(EJECTION)
    for succeeded in (False, False, False, False, True) * 10:
        attempt(breaker, succeeded, 0)
    assert not breaker.out(0)


def test_one_trial_at_a_time_decides_after_the_pause() -> None:
    breaker = opened(EJECTION)
    assert breaker.out(29.9)
    assert not breaker.out(30)
    trial = breaker.begin()
    assert breaker.out(30.1)
    breaker.end(trial, True, 31)
    assert not breaker.out(31)


def test_a_trial_whose_caller_left_decides_nothing_and_frees_the_place() -> None:
    breaker = opened(EJECTION)
    trial = breaker.begin()
    breaker.end(trial, None, 31)
    assert not breaker.out(31)


@pytest.mark.parametrize(
    ("rule", "pauses"),
    [(EJECTION, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300]), (CONNECT, [1, 2, 4, 8, 10, 10])],
    ids=["ejection", "connect"],
)
def test_each_failed_trial_makes_the_pause_longer_up_to_a_cap(rule: Rule, pauses: list[float]) -> None:
    breaker, now = opened(rule), 0.0
    for pause in pauses:
        assert breaker.back_at == now + pause
        now = breaker.back_at
        attempt(breaker, False, now)


def test_a_backend_that_stayed_well_for_long_starts_with_a_short_pause_again() -> None:
    breaker = opened(EJECTION)
    attempt(breaker, False, 30)
    attempt(breaker, True, 90)
    for _ in range(5):
        attempt(breaker, False, 100)
    assert breaker.back_at == 100 + 90
    attempt(breaker, True, 190)
    for _ in range(5):
        attempt(breaker, False, 500)
    assert breaker.back_at == 530


def test_a_burst_of_failures_that_began_together_ejects_once() -> None:
    breaker = Breaker(EJECTION)
    tickets = [breaker.begin() for _ in range(100)]
    for ticket in tickets:
        breaker.end(ticket, False, 0)
    assert (breaker.opened, breaker.back_at) == (1, 30)


def test_an_answer_to_an_attempt_from_before_the_ejection_does_not_end_it() -> None:
    breaker = Breaker(EJECTION)
    old = breaker.begin()
    for _ in range(5):
        attempt(breaker, False, 0)
    breaker.end(old, True, 1)
    assert breaker.out(1)


def test_a_cool_down_is_of_whoever_caused_it() -> None:
    cool = CoolDown()
    cool.start("a", 60)
    cool.start("a", 30)
    assert (cool.back_at("a"), cool.back_at("b"), cool.back_at("")) == (60, 0, 0)


def test_cool_downs_of_many_tenants_stay_bounded() -> None:
    cool = CoolDown()
    for number in range(5000):
        cool.start(str(number), 60)
    assert len(cool._until) == 1024
    assert cool.back_at("4999") == 60


def test_the_budget_starts_empty_and_saves_up_to_ten() -> None:
    budget = RetryBudget()
    assert not budget.spend()
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()
    assert not budget.spend()
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 10


def test_a_budget_of_nothing_buys_nothing() -> None:
    budget = RetryBudget(0)
    for _ in range(1000):
        budget.earn()
    assert not budget.spend()


@pytest.mark.parametrize("seed", range(5))
def test_retries_never_exceed_a_tenth_of_the_requests(seed: int) -> None:
    dice, budget, retries = random.Random(seed), RetryBudget(), 0
    for requests in range(1, 5000):
        budget.earn()
        if dice.random() < 0.5:
            retries += budget.spend()
        assert retries * 10 <= requests
