from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cacheproxy import settings
from cacheproxy.policy.adapt import LoadWatch, Reading, Sample, effective_threshold, effective_ttl

shares = st.floats(0, 1)
samples = st.builds(
    Sample,
    in_flight=st.integers(-5, 500),
    limit=st.integers(0, 200),
    p95_s=st.floats(allow_nan=True, allow_infinity=True),
)
steps = st.lists(st.tuples(samples, st.floats(0, 20)), min_size=1, max_size=120)
configs = st.builds(
    settings.Load,
    slo_ms=st.floats(1, 100_000),
    low=st.floats(0.1, 0.8),
    high=st.floats(0.9, 1.5),
    alpha=st.floats(0.01, 1),
    hold_s=st.floats(0.1, 60),
)


def replay(config: settings.Load, taken: list[tuple[Sample, float]]) -> list[tuple[float, Reading]]:
    watch, now_s, told = LoadWatch(config), 0.0, []
    for sample, pause_s in taken:
        now_s += pause_s
        told.append((now_s, watch.observe("a", sample, now_s)))
    return told


@given(shares, st.none() | shares, st.floats(0, 0.2), shares, shares)
def test_an_effective_threshold_stays_between_floor_and_threshold_and_falls_with_load(
    threshold: float, floor: float | None, drop: float, one: float, other: float
) -> None:
    light, heavy = sorted((one, other))
    eased = effective_threshold(threshold, floor, drop, light)
    lowest = threshold if floor is None else min(threshold, floor)
    assert lowest <= effective_threshold(threshold, floor, drop, heavy) <= eased <= threshold
    assert effective_threshold(threshold, floor, 0.0, heavy) == threshold
    assert effective_threshold(threshold, floor, drop, 0.0) == threshold


@given(st.floats(0.1, 1e7), st.floats(0, 10), shares, shares)
def test_an_effective_lifetime_grows_with_load_and_never_shrinks(
    ttl_s: float, stretch: float, one: float, other: float
) -> None:
    light, heavy = sorted((one, other))
    assert ttl_s <= effective_ttl(ttl_s, stretch, light) <= effective_ttl(ttl_s, stretch, heavy)
    assert effective_ttl(ttl_s, 0.0, heavy) == ttl_s


@given(configs, steps)
def test_load_is_a_share_and_never_below_what_is_measured(
    config: settings.Load, taken: list[tuple[Sample, float]]
) -> None:
    for _, reading in replay(config, taken):
        assert 0.0 <= reading.lam <= 1.0
        assert reading.held >= reading.average >= 0.0


@given(configs, steps)
def test_load_falls_only_to_the_highest_of_the_last_while(
    config: settings.Load, taken: list[tuple[Sample, float]]
) -> None:
    told = replay(config, taken)
    for index, (now_s, reading) in enumerate(told):
        recent = [one.average for at, one in told[: index + 1] if now_s - at <= config.hold_s]
        assert reading.held >= max(recent)
        if index and reading.held < told[index - 1][1].held:
            assert reading.held == max(recent)


@given(configs, steps)
def test_load_does_not_flap(config: settings.Load, taken: list[tuple[Sample, float]]) -> None:
    """Between a rise and the next fall there are more than `hold_s`, whatever is measured."""
    told = replay(config, taken)
    risen_s: float | None = None
    held = 0.0
    for now_s, reading in told:
        if reading.held > held:
            risen_s = now_s
        elif reading.held < held:
            assert risen_s is not None
            assert now_s - risen_s > config.hold_s
        held = reading.held


@given(configs, steps)
def test_an_idle_backend_comes_back_to_no_load(config: settings.Load, taken: list[tuple[Sample, float]]) -> None:
    idle = (Sample(in_flight=0, limit=1, p95_s=0.0), config.hold_s * 1.01)
    assert replay(config, [*taken, *[idle] * 600])[-1][1].lam == 0.0
