from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.bound import share
from cacheproxy.policy.breakeven import Costs, Measured, balance, break_even, net_ms, net_usd


@pytest.mark.parametrize("backend_ms", [180.0, 200.0, 230.0])
@pytest.mark.parametrize(("search_ms", "published"), [(30.0, (0.15, 0.20)), (2.0, (0.03, 0.05))])
def test_both_published_ranges_come_out(search_ms: float, published: tuple[float, float], backend_ms: float) -> None:
    """arXiv 2510.26835: with a remote vector database 15-20 % of hits must pay for it, in process memory 3-5 %."""
    embedding_ms, document_ms = 5.0, 1.0
    costs = Costs(overhead_ms=search_ms + embedding_ms, fetch_ms=document_ms, backend_ms=backend_ms)
    assert published[0] <= break_even(costs) <= published[1]


@given(overhead=st.floats(0.01, 100), fetch=st.floats(-10, 50), backend=st.floats(1, 10_000), hit_rate=st.floats(0, 1))
def test_it_pays_exactly_above_the_break_even(overhead: float, fetch: float, backend: float, hit_rate: float) -> None:
    costs = Costs(overhead_ms=overhead, fetch_ms=fetch, backend_ms=backend)
    gain, at = net_ms(hit_rate, costs), break_even(costs)
    if abs(gain) > 1e-9:
        assert (gain > 0) == (hit_rate > at)


def test_where_a_hit_is_no_faster_than_the_backend_nothing_pays() -> None:
    costs = Costs(overhead_ms=1.0, fetch_ms=5.0, backend_ms=5.0)
    assert break_even(costs) == math.inf
    assert net_ms(1.0, costs) < 0


def test_the_net_benefit_is_the_time_that_was_really_spared() -> None:
    """With hits of 3 ms, misses of 8 ms and a backend of 500 ms, against the backend alone."""
    measured = Measured(lookups=100, hits=20, hit_ms=20 * 3.0, miss_ms=80 * 8.0, fills=100, fill_ms=100 * 500.0)
    found = balance(measured, None, 2.0)
    with_cache_ms = (20 * 3.0 + 80 * (8.0 + 500.0)) / 100
    assert found.net_ms == pytest.approx(500.0 - with_cache_ms)
    assert found.pays
    assert found.break_even == pytest.approx(8.0 / (500.0 + 5.0))


def test_a_category_without_hits_loses_what_its_lookups_take() -> None:
    found = balance(Measured(lookups=10, miss_ms=50.0, fills=10, fill_ms=1000.0), None, 2.0)
    assert (found.hit_rate, found.net_ms, found.pays) == (0.0, -5.0, False)


@pytest.mark.parametrize("measured", [Measured(), Measured(lookups=3, miss_ms=9.0)])
def test_what_is_not_known_is_not_made_up(measured: Measured) -> None:
    found = balance(measured, None, 2.0)
    assert (found.break_even, found.net_ms, found.pays) == (None, None, None)


def test_a_false_hit_saves_nothing_and_costs_its_penalty() -> None:
    assert net_usd(0.5, 0.01, None, 2.0) == pytest.approx(0.005)
    assert net_usd(0.5, 0.01, share(0, 0), 2.0) == pytest.approx(0.005)
    assert net_usd(0.5, 0.01, share(1, 3), 2.0) == pytest.approx(0.0)
    assert net_usd(0.5, 0.01, share(1, 2), 2.0) < 0
