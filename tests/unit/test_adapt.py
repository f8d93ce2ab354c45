from __future__ import annotations

import pytest

from cacheproxy import settings
from cacheproxy.errors import ConfigError
from cacheproxy.policy.adapt import LoadWatch, Sample, effective_threshold, effective_ttl
from cacheproxy.upstream.recent import RecentTimes

AT_ONCE = settings.Load(alpha=1.0, low=0.5, high=1.0, hold_s=10.0, slo_ms=2000.0)


def sample(in_flight: int = 0, limit: int = 100, p95_s: float = 0.0) -> Sample:
    return Sample(in_flight=in_flight, limit=limit, p95_s=p95_s)


@pytest.mark.parametrize(
    ("threshold", "floor", "drop", "load", "expected"),
    [
        (0.9, 0.8, 0.05, 0.0, 0.9),
        (0.9, 0.8, 0.05, 0.5, 0.875),
        (0.9, 0.8, 0.05, 1.0, 0.85),
        (0.9, 0.88, 0.05, 1.0, 0.88),
        (0.9, None, 0.05, 1.0, 0.9),
        (0.9, 0.8, 0.0, 1.0, 0.9),
        (0.9, 0.95, 0.05, 1.0, 0.9),
    ],
    ids=["idle", "half", "full", "floor", "no floor", "no drop", "floor above the threshold"],
)
def test_a_threshold_falls_with_the_load_as_far_as_its_floor(
    threshold: float, floor: float | None, drop: float, load: float, expected: float
) -> None:
    assert effective_threshold(threshold, floor, drop, load) == pytest.approx(expected)


def test_a_lifetime_stretches_with_the_load() -> None:
    assert [effective_ttl(100.0, 1.0, load) for load in (0.0, 0.5, 1.0)] == [100.0, 150.0, 200.0]
    assert effective_ttl(100.0, 0.0, 1.0) == 100.0


@pytest.mark.parametrize(
    ("given", "load", "lam"),
    [
        (sample(in_flight=20), 0.2, 0.0),
        (sample(in_flight=50), 0.5, 0.0),
        (sample(in_flight=75), 0.75, 0.5),
        (sample(in_flight=100), 1.0, 1.0),
        (sample(in_flight=150), 1.5, 1.0),
        (sample(in_flight=900), 2.0, 1.0),
        (sample(p95_s=1.5), 0.75, 0.5),
        (sample(in_flight=60, p95_s=1.8), 0.9, 0.8),
        (sample(in_flight=90, p95_s=1.2), 0.9, 0.8),
        (sample(in_flight=5, limit=0), 0.0, 0.0),
        (sample(p95_s=float("nan")), 0.0, 0.0),
        (sample(p95_s=float("inf")), 0.0, 0.0),
        (sample(p95_s=-1.0), 0.0, 0.0),
    ],
)
def test_load_is_the_higher_of_occupancy_and_latency(given: Sample, load: float, lam: float) -> None:
    reading = LoadWatch(AT_ONCE).observe("a", given, 0.0)
    assert reading.load == pytest.approx(load)
    assert reading.lam == pytest.approx(lam)


def test_the_average_weighs_a_new_sample_by_alpha() -> None:
    watch = LoadWatch(settings.Load(alpha=0.2))
    averages = [watch.observe("a", sample(in_flight=100), float(at)).average for at in range(3)]
    assert averages == pytest.approx([0.2, 0.36, 0.488])


def test_load_rises_at_once_and_falls_only_when_it_stayed_lower() -> None:
    watch = LoadWatch(AT_ONCE)
    assert watch.observe("a", sample(in_flight=100), 0.0).lam == 1.0
    told = [watch.observe("a", sample(), float(at)).lam for at in range(1, 13)]
    assert told[:10] == [1.0] * 10
    assert told[10:] == [0.0, 0.0]


def test_one_busy_moment_starts_the_wait_again() -> None:
    watch = LoadWatch(AT_ONCE)
    watch.observe("a", sample(in_flight=100), 0.0)
    watch.observe("a", sample(in_flight=98), 9.0)
    assert watch.observe("a", sample(), 18.0).held == 1.0  # 0.98 is no lower mark
    assert watch.observe("a", sample(), 20.0).held == 0.0


def test_backends_are_told_apart_and_an_unknown_one_is_idle() -> None:
    watch = LoadWatch(AT_ONCE)
    watch.observe("a", sample(in_flight=100), 0.0)
    watch.observe("b", sample(in_flight=75), 0.0)
    assert (watch.lam("a"), watch.lam("b"), watch.lam("c")) == (1.0, 0.5, 0.0)
    assert watch.least(["a", "b"]) == 0.5
    assert watch.least(["a"]) == 1.0
    assert watch.least([]) == 0.0
    assert {name: reading.lam for name, reading in watch.readings.items()} == {"a": 1.0, "b": 0.5}


def test_marks_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"load\.low must be below load\.high"):
        LoadWatch(settings.Load(low=1.0, high=0.9))


def test_recent_times_forget_what_is_old_and_ask_for_enough() -> None:
    recent = RecentTimes()
    for at in range(7):
        recent.add(5.0, float(at))
    assert recent.p95_s(6.0) == 0.0  # too few to tell
    for _ in range(93):
        recent.add(1.0, 10.0)
    assert recent.p95_s(10.0) == 5.0
    assert recent.p95_s(33.0) == 1.0
    assert recent.p95_s(41.0) == 0.0
