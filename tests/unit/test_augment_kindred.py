from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.augment.kindred import Evidence, Kindred, spread

EXPECTED = np.linspace(-0.05, 0.15, 10)
PAIR = 0.36
"""Variance of one pair of tries."""


def evidence(gain: float, pairs: float, parts: slice = slice(None)) -> Evidence:
    """Return what so many pairs in each of some parts say, where each says the same."""
    precisions = np.zeros(10)
    precisions[parts] = pairs / PAIR
    return Evidence(gains=np.full(10, gain), precisions=precisions)


def test_where_nothing_was_tried_what_code_expects_is_expected() -> None:
    for seen, at in (([], None), ([evidence(0.9, 0)], 0)):
        found = Kindred(EXPECTED, seen).estimate(at)
        assert found.gains == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("gains", "least", "most"),
    [
        ((), 0.04, 0.06),
        ((0.05,), 0.0, 0.06),
        ((0.05, 0.06, 0.04), 0.0, 0.06),
        ((0.6, 0.0), 0.2, 0.3),
        ((9, -9), 0.4, 0.4),
    ],
)
def test_the_spread_is_that_of_the_categories_within_bounds(
    gains: tuple[float, ...], least: float, most: float
) -> None:
    found = Kindred(EXPECTED, [evidence(gain, 30) for gain in gains]).spread ** 0.5
    assert least <= found <= most + 1e-9


def test_categories_that_agree_are_near_to_one_another_though_code_expected_less() -> None:
    agree = Kindred(EXPECTED, [evidence(0.5, 30)] * 6).spread
    differ = Kindred(EXPECTED, [evidence(gain, 30) for gain in (0.8, 0.2) * 3]).spread
    assert agree < differ


def test_luck_of_a_few_tries_is_not_taken_for_a_spread() -> None:
    lucky = [evidence(1.0, 1, slice(0, 1)), evidence(-1.0, 1, slice(3, 4))]
    assert Kindred(EXPECTED, lucky).spread ** 0.5 < 0.08


def test_a_new_category_starts_between_what_code_expects_and_what_others_gained() -> None:
    few = Kindred(EXPECTED, [evidence(0.6, 30)]).estimate(None).gains
    many = Kindred(EXPECTED, [evidence(0.6, 30)] * 6).estimate(None).gains
    assert (few > EXPECTED + 0.1).all()
    assert (many > few).all()
    assert (many < 0.65).all()


def test_own_tries_count_sooner_the_further_categories_are_apart() -> None:
    own = evidence(0.0, 3)
    near = Kindred(EXPECTED, [own, *[evidence(0.1, 30)] * 4]).estimate(0).gains
    apart = Kindred(EXPECTED, [own, *(evidence(gain, 30) for gain in (0.6, -0.4, 0.5, -0.3))]).estimate(0).gains
    assert np.abs(apart).mean() < np.abs(near).mean()


def test_own_tries_tell_of_neighbouring_parts_more_than_of_far_ones() -> None:
    before = Kindred(EXPECTED, []).estimate(None)
    after = Kindred(EXPECTED, [evidence(-0.5, 60, slice(5, 6))]).estimate(0)
    moved = before.gains - after.gains
    assert moved[5] > moved[7] > moved[9] > 0
    assert after.variances[5] < after.variances[9]


def test_the_order_of_categories_does_not_matter() -> None:
    seen = [evidence(0.5, 8), evidence(-0.2, 30, slice(2, 6)), evidence(0.1, 2)]
    forth, back = Kindred(EXPECTED, seen), Kindred(EXPECTED, seen[::-1])
    assert forth.estimate(0).gains == pytest.approx(back.estimate(2).gains)
    assert forth.estimate(None).gains == pytest.approx(back.estimate(None).gains)


ROWS = st.lists(
    st.tuples(
        st.lists(st.floats(-1, 1), min_size=10, max_size=10), st.lists(st.floats(0, 4000), min_size=10, max_size=10)
    ),
    max_size=5,
)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_estimates_are_finite_and_surer_than_none(rows: list[tuple[list[float], list[float]]]) -> None:
    seen = [Evidence(gains=np.array(gains), precisions=np.array(precisions)) for gains, precisions in rows]
    kindred = Kindred(EXPECTED, seen)
    assert 0.0 < kindred.spread < 1.0
    for at in (None, *range(len(seen))):
        found = kindred.estimate(at)
        assert np.isfinite(found.gains).all()
        assert (found.variances > 0).all()
        assert (found.variances <= 2.0 * kindred.spread + 1e-9).all()


def test_the_spread_of_no_tries_is_what_it_is_without_categories() -> None:
    none = spread(np.zeros((0, 10)), np.zeros((0, 10)))
    assert spread(np.ones((3, 10)), np.zeros((3, 10))) == none
