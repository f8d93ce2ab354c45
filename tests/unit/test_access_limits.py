from __future__ import annotations

from typing import Any

import pytest

from cacheproxy.access.limits import Account, Accounts, day_of
from cacheproxy.errors import RateLimited
from tests.support.clock import FakeClock
from tests.support.virtual_keys import record


def refused(account: Account, clock: FakeClock) -> RateLimited | None:
    try:
        account.count_request(clock.monotonic())
        account.check_tokens(clock.monotonic(), clock.now())
    except RateLimited as exc:
        return exc
    return None


def charged(account: Account, tokens: int, clock: FakeClock) -> None:
    account.charge_tokens(tokens, clock.monotonic(), clock.now())


def account_of(clock: FakeClock, **limits: int) -> Account:
    fields: dict[str, Any] = {**limits}
    return Account(record(**fields), clock.monotonic())


def wait_s(refusal: RateLimited | None) -> float:
    assert refusal is not None
    assert refusal.retry_after_s is not None
    return refusal.retry_after_s


def test_without_limits_nothing_is_refused_or_metered() -> None:
    clock = FakeClock()
    account = account_of(clock)
    assert all(refused(account, clock) is None for _ in range(10_000))
    assert not account.metered
    assert account.requests(clock.monotonic()) is account.tokens(clock.monotonic()) is account.day(clock.now()) is None


def test_a_minutes_worth_of_requests_may_come_at_once_and_then_as_they_refill() -> None:
    clock = FakeClock()
    account = account_of(clock, requests_per_minute=60)
    assert all(refused(account, clock) is None for _ in range(60))
    refusal = refused(account, clock)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.type) == (429, "rate_limit_exceeded", "requests")
    assert refusal.retry_after_s == pytest.approx(1.0)
    clock.advance(wait_s(refusal))
    assert refused(account, clock) is None
    assert refused(account, clock) is not None


def test_a_refused_request_does_not_push_the_next_one_away() -> None:
    clock = FakeClock()
    account = account_of(clock, requests_per_minute=1)
    assert refused(account, clock) is None
    waits = [refusal.retry_after_s for _ in range(5) if (refusal := refused(account, clock))]
    assert waits == pytest.approx([60.0] * 5)


def test_tokens_are_charged_late_and_the_debt_is_waited_for() -> None:
    clock = FakeClock()
    account = account_of(clock, tokens_per_minute=600)
    assert account.metered
    assert refused(account, clock) is None
    charged(account, 900, clock)
    refusal = refused(account, clock)
    assert refusal is not None
    assert refusal.type == "tokens"
    assert refusal.retry_after_s == pytest.approx(30.1)
    clock.advance(wait_s(refusal))
    assert refused(account, clock) is None


def test_the_tokens_of_a_day_come_back_at_midnight_utc() -> None:
    clock = FakeClock()
    account = account_of(clock, tokens_per_day=100)
    charged(account, 99, clock)
    assert refused(account, clock) is None
    charged(account, 50, clock)
    refusal = refused(account, clock)
    assert refusal is not None
    assert day_of(clock.now() + wait_s(refusal)) == day_of(clock.now()) + 1
    clock.advance(wait_s(refusal) - 1)
    assert refused(account, clock) is not None
    clock.advance(2)
    assert refused(account, clock) is None


def test_standings_tell_limit_rest_and_reset() -> None:
    clock = FakeClock()
    account = account_of(clock, requests_per_minute=60, tokens_per_minute=6000, tokens_per_day=9000)
    account.count_request(clock.monotonic())
    charged(account, 600, clock)
    requests, tokens, day = account.requests(clock.monotonic()), account.tokens(clock.monotonic()), account.day(0.0)
    assert requests is not None
    assert tokens is not None
    assert (requests.limit, requests.remaining) == (60, 59)
    assert (tokens.limit, tokens.remaining) == (6000, 5400)
    assert (requests.reset_s, tokens.reset_s) == pytest.approx((1.0, 6.0))
    assert day is not None
    assert (day.limit, day.remaining, day.reset_s) == (9000, 9000, 0.0)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    clock = FakeClock()
    account = account_of(clock, requests_per_minute=1)
    account.count_request(clock.monotonic())
    clock.advance(-3600)
    assert refused(account, clock) is not None
    clock.advance(3600)
    assert refused(account, clock) is not None


def test_changed_limits_keep_what_was_used() -> None:
    clock, accounts = FakeClock(), Accounts()
    accounts.adopt([record(requests_per_minute=10, tokens_per_day=100)], clock.monotonic())
    account = accounts.of("k1")
    for _ in range(10):
        account.count_request(clock.monotonic())
    charged(account, 100, clock)
    accounts.adopt([record(requests_per_minute=12, tokens_per_day=150)], clock.monotonic())
    assert accounts.of("k1") is account
    assert [refused(account, clock) is None for _ in range(3)] == [True, True, False]
    accounts.adopt([record(requests_per_minute=10, tokens_per_day=100)], clock.monotonic())
    clock.advance(5)
    assert refused(account, clock) is not None
    clock.advance(60)
    assert isinstance(refused(account, clock), RateLimited)  # the day's tokens


def test_accounts_are_those_of_the_ring() -> None:
    accounts = Accounts()
    accounts.adopt([record(), record("sk-cp-2", id="k2")], 0.0)
    accounts.adopt([record("sk-cp-2", id="k2")], 1.0)
    with pytest.raises(KeyError):
        accounts.of("k1")
    assert accounts.of("k2")


def test_a_restart_takes_up_the_tokens_of_the_day() -> None:
    clock, accounts = FakeClock(), Accounts()
    accounts.adopt([record(tokens_per_day=100)], clock.monotonic())
    charged(accounts.of("k1"), 100, clock)
    kept = accounts.spent(clock.now())
    assert kept == {"k1": 100}
    again = Accounts()
    again.adopt([record(tokens_per_day=100)], clock.monotonic())
    again.restore(day_of(clock.now()), {**kept, "gone": 7})
    assert refused(again.of("k1"), clock) is not None
    clock.advance(86_400)
    assert again.spent(clock.now()) == {}
    assert refused(again.of("k1"), clock) is None
