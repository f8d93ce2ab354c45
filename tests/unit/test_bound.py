from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from cacheproxy.policy.bound import most_within, share


@given(trials=st.integers(1, 400), data=st.data())
def test_the_interval_is_that_of_clopper_and_pearson(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, trials))
    found = share(events, trials)
    low = beta.ppf(0.025, events, trials - events + 1) if events else 0.0
    high = beta.ppf(0.975, events + 1, trials - events) if events < trials else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.estimate == events / trials


def test_the_interval_holds_for_as_many_labels_as_are_kept() -> None:
    found = share(37, 10_000)
    assert found.low == pytest.approx(beta.ppf(0.025, 37, 9964), abs=1e-9)
    assert found.high == pytest.approx(beta.ppf(0.975, 38, 9963), abs=1e-9)


def test_of_nothing_nothing_is_known() -> None:
    found = share(0, 0)
    assert (found.estimate, found.low, found.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize(("events", "trials", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_what_is_no_share_is_refused(events: int, trials: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no share"):
        share(events, trials, confidence)


@given(bound=st.floats(0.0, 1.0), trials=st.integers(1, 400))
def test_so_many_are_within_a_bound_and_one_more_is_not(bound: float, trials: int) -> None:
    most = most_within(bound, trials)
    assert most == 0 or share(most, trials).high <= bound + 1e-9
    assert most == trials or share(most + 1, trials).high > bound - 1e-9


@pytest.mark.parametrize(("bound", "most"), [(0.01, 36), (0.02, 80), (0.05, 219), (0.0001, 0), (1.0, 5000)])
def test_what_budgets_ask_is_known_at_once(bound: float, most: int) -> None:
    """A tenth of what may stall the event loop, and many times what it takes."""
    took_s = []
    for _ in range(3):
        began_s = time.thread_time()
        assert most_within(bound, 5000) == most
        took_s.append(time.thread_time() - began_s)
    assert min(took_s) < 0.002


def test_the_interval_of_as_many_labels_as_are_kept_stalls_nothing() -> None:
    took_s = []
    for _ in range(3):
        began_s = time.thread_time()
        share(2000, 4000)
        took_s.append(time.thread_time() - began_s)
    assert min(took_s) < 0.02
