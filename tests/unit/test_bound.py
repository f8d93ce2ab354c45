from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from cacheproxy.policy.bound import share


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
