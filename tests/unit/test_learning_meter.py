from __future__ import annotations

from cacheproxy.learn.meter import LearningMeter
from cacheproxy.policy.pack import Category
from tests.support.clock import FakeClock

RULES = Category(learning_calls_per_hour=2, learning_usd_per_day=1.0)


def test_so_many_calls_an_hour_and_they_come_back_evenly() -> None:
    clock = FakeClock()
    meter = LearningMeter(clock)
    assert [meter.take("a", RULES) for _ in range(3)] == [True, True, False]
    assert meter.take("b", RULES)  # another category has its own
    clock.advance(1800)
    assert [meter.take("a", RULES) for _ in range(2)] == [True, False]


def test_what_is_spent_stops_calls_until_some_of_it_is_given_back() -> None:
    clock = FakeClock()
    meter = LearningMeter(clock)
    meter.charge("a", RULES, 1.5)
    assert not meter.take("a", RULES)
    clock.advance(86_400 * 0.6)
    assert meter.take("a", RULES)


def test_nothing_allowed_is_nothing_taken() -> None:
    meter = LearningMeter(FakeClock())
    assert not meter.take("a", Category(learning_calls_per_hour=0))
    assert not meter.take("a", Category(learning_usd_per_day=0.0))
