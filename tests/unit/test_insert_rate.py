from __future__ import annotations

from cacheproxy.access.inserts import InsertRate
from tests.support.clock import FakeClock


def test_a_tenant_has_its_answers_of_a_minute_kept_and_no_more() -> None:
    clock = FakeClock()
    rate = InsertRate(3, clock)
    assert [rate("a") for _ in range(4)] == [True, True, True, False]
    assert rate("b"), "another tenant has its own"
    clock.advance(20.0)
    assert [rate("a") for _ in range(2)] == [True, False]


def test_nought_is_no_limit() -> None:
    rate = InsertRate(0, FakeClock())
    assert all(rate("a") for _ in range(10_000))


def test_tenants_that_are_forgotten_bound_the_memory() -> None:
    rate = InsertRate(1, FakeClock())
    for number in range(10_100):
        rate(str(number))
    assert len(rate._buckets) == 10_000
    assert rate("0"), "it was forgotten, and begins anew"
